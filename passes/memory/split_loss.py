"""Compute the head and the loss in chunks of rows, forward and backward, so that the scores are never whole.

Before                                        After (2 chunks)
  %s = nn.linear %x, %w                         %x0 = aten.slice %x, rows of chunk 0
  %t, %n, %l = nn.cross_entropy %s, %y          %s0 = nn.linear %x0, %w
  ..                                            %t0, %n0, %l0 = nn.cross_entropy %s0, %y0
  %ds = nn.cross_entropy_backward ..            .. the same of chunk 1;  %t = %t0 + %t1
  %dx = nn.linear %ds, %wt                      %ds0 = nn.cross_entropy_backward %c, %s0, %y0, %l0
  %dw = nn.sum_of_outer_products %ds, %x        %dx0 = nn.linear %ds0, %wt;  %dw0 = ..
                                                .. the same of chunk 1;  %dw = %dw0 + %dw1;  %dx = cat %dx0, %dx1

The head is the linear layer that makes the scores of a loss. All operations that take or give tensors as large as the
scores run in chunks of a dim of rows. How each runs on a chunk is what its sharding strategies say: rows that it cuts
are joined, sums that it leaves partial are added. A dim that no input shards comes first; of one that is sharded, each
rank's part is cut. `recompute` then computes each chunk's scores again right before its backward.

Needs: level `aten`, folded layers, placements on main's arguments.   Keeps: values, up to the order of sums.
Source: Liger Kernel (arXiv:2410.10989) and Cut Your Losses in Large-Vocabulary Language Models (arXiv:2411.09009).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...dsl.memory.split import Split
from ...dsl.plan import Plan
from ...ir.module import Level, Module
from ...ir.types import from_mlir
from ..base import Pass, Remark, RemarkKind, Report
from ..graph import Graph
from .chunks import Chunked
from .loss_region import LossRegion


@dataclass(frozen=True)
class SplitLoss(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "split-loss"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})
    plan: Plan
    """The plan; its `split loss` statement is used."""

    def run(self, module: Module) -> Report:
        statement = next((each for each in self.plan.statements if isinstance(each, Split)), None)
        if statement is None:
            return Report()
        region = LossRegion(Graph.of(module.functions()["main"]), statement, dict(module.mesh))
        shape = " x ".join(map(str, from_mlir(region.head.values[0].type).shape))
        message = (
            f"{len(region.nodes)} operations on scores of {shape} run in {statement.chunks} chunks of dim {region.dim}"
        )
        remark = Remark(self.name, RemarkKind.APPLIED, message, region.head.origin, statement.span)
        return Report(Chunked(module, region).run(), (remark,))
