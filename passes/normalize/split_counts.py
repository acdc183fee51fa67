"""Compute the count of a loss's targets separately from the loss, so that it is known before the loss.

Before                                                 After
  %t, %n, %l = nn.cross_entropy %logits, %labels         %v = aten.ne.Scalar %labels, ignore_index
  %1 = aten.div %t, %n                                   %n = aten.sum %v
                                                         %t, %_, %l = nn.cross_entropy %logits, %labels
                                                         %1 = aten.div %t, %n

A mean loss of the global batch divides by the number of its targets that are not ignored. That count depends on the
inputs alone, so a pipeline can compute it before its first microbatch. `split-means` does so for `nll_loss`.

Needs: level `aten`, idioms raised.   Keeps: values.   Cost: two small operations more per loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...ir.module import Level, Module
from ...ir.types import from_mlir
from ..base import Pass, Report
from ..rewriting import Applied, Outcome, Site, rewrite
from .label_counts import count_of

CROSS_ENTROPY = "nn.cross_entropy"


@dataclass(frozen=True)
class SplitCounts(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "split-counts"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})
    joins_layers: ClassVar[bool] = True

    def run(self, module: Module) -> Report:
        return rewrite(module, self.name, {CROSS_ENTROPY: _split})


def _split(site: Site) -> Outcome:
    _, labels, ignored = site.call.args
    counted = site.op.results[1]
    counted.replace_all_uses_with(count_of(site.emitter, labels, ignored, None, from_mlir(counted.type)))
    return Applied("targets counted apart from the loss")
