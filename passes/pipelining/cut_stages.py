"""Cut the model into the stages of a pipeline: mark every operation of main with its stage.

Before                                     After
  %1 = call @layers_forward(%0, ..)          %1 = call @layers_forward(%0, ..) {stage = 0}
  %2 = call @layers_forward(%1, ..)          %2 = call @layers_forward(%1, ..) {stage = 1}
  ..                                         ..
  %8 = call @layers_backward(%7, ..)         %8 = call @layers_backward(%7, ..) {stage = 1}

A stage is a run of the forward's operations; the plan states where stages begin (`split`), or balances them: by `time`,
`memory` or `layers`. A backward operation follows the forward values that it reads. An operation that needs no
parameter belongs to no stage: it is recomputed wherever it is used. Cuts go between folded layers; layers are unfolded
if that gives too few stages or leaves them uneven.

Needs: level `comm`, a microbatch axis (`partition-tensors`).   Keeps: values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from ...costs.communication import LINK_BYTE
from ...costs.compute import bytes_of
from ...diagnostics import StrettoError
from ...dsl.pipeline import Balance
from ...dsl.plan import Plan
from ...ir.locations import Origin
from ...ir.module import Level, Module
from ..base import Pass, Remark, RemarkKind, Report
from ..graph import Node
from ..layers.unfold_layers import unfold
from .attributes import check_microbatches, mark_stage
from .balance import balanced, largest
from .estimates import estimated
from .microbatch_analysis import MicrobatchAnalysis
from .op_costs import OpCosts
from .scheduled_pipeline import ScheduledPipeline, note_times, schedule_pipeline
from .shared_work import analyse
from .split_points import split_points
from .stages import Stages, crossing_bytes

_LAYER = re.compile(r"^(?:.*?\.)?\d+(?=\.|$)")

UNEVEN = 1.25
"""Layers are unfolded, to be cut inside, if the largest stage of whole layers exceeds the mean by this factor."""

_BYTE = {Balance.TIME: LINK_BYTE, Balance.MEMORY: 1.0, Balance.LAYERS: 1e-12}
"""The cost of a byte that crosses a cut, in the unit of the balanced quantity."""


@dataclass(frozen=True)
class CutStages(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "cut-stages"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    plan: Plan
    """The plan; its statement about the pipeline is used."""

    def run(self, module: Module) -> Report:
        pipeline = self.plan.pipeline
        if pipeline is None:
            return Report()
        check_microbatches(self.name, self.plan, module)
        op_costs = OpCosts(module)
        analysis, shared = analyse(module, pipeline.axis, pipeline.barriers)
        if analysis.tangent:
            note_times(module, estimated(module, analysis, shared, dict(module.mesh)[pipeline.axis], op_costs))
        scheduled = schedule_pipeline(self.plan, module)
        analysis, cuts = _cuts(module, scheduled, op_costs)
        stages = Stages.from_cuts(analysis, cuts)
        for node, stage in stages.by_node.items():
            mark_stage(node.op, stage)
        return Report(len(cuts), tuple(_remarks(analysis, stages, op_costs)))


def _cuts(module: Module, scheduled: ScheduledPipeline, op_costs: OpCosts) -> tuple[MicrobatchAnalysis, Sequence[int]]:
    """The cuts as indices of forward operations; layers are unfolded if a cut goes through one."""
    pipeline = scheduled.pipeline
    analysis, _ = analyse(module, pipeline.axis, pipeline.barriers)
    if len(analysis.forward) < scheduled.stages or any(
        inner for _, inner in split_points(module, analysis.forward, pipeline)
    ):
        unfold(module)
        analysis, _ = analyse(module, pipeline.axis, pipeline.barriers)
    if len(analysis.forward) < scheduled.stages:
        raise StrettoError(
            "E0451",
            f"the pipeline has {scheduled.stages} stages, but the forward has only {len(analysis.forward)} operations "
            "with parameters to share out",
            span=pipeline.span,
            help="take fewer stages or chunks",
        )
    if pipeline.split:
        return analysis, _stated_cuts(module, analysis.forward, scheduled)
    costs = _costs(analysis.forward, pipeline.balance, analysis, op_costs)
    crossing = [nbytes * _BYTE[pipeline.balance] for nbytes in crossing_bytes(analysis, analysis.forward)]
    cuts = balanced(costs, crossing, scheduled.stages)
    whole = [cost for cost, node in zip(costs, analysis.forward, strict=True) if node.callee is None]
    bound = max(sum(costs) / scheduled.stages, *whole, 0.0)
    if largest(costs, cuts) > UNEVEN * bound and unfold(module):
        return _cuts(module, scheduled, op_costs)
    return analysis, cuts


def _stated_cuts(module: Module, forward: Sequence[Node], scheduled: ScheduledPipeline) -> list[int]:
    """The cuts that the plan states by `split`."""
    pipeline = scheduled.pipeline
    cuts = [index for index, _ in split_points(module, forward, pipeline)]
    if len(cuts) != scheduled.stages - 1:
        begins = ", ".join(f'"{forward[index].origin.module_path}"' for index in cuts[:8])
        where = f"stages would begin at {begins}" if begins else "no stage can begin where the first one does"
        raise StrettoError(
            "E0453",
            f"the plan begins {_stage_count(len(cuts))} behind the first, but the pipeline has "
            f"{_stage_count(scheduled.stages)}",
            span=pipeline.span_of("split"),
            expected=f"expected modules for {scheduled.stages - 1} of them",
            notes=((where, None),),
            help="name one module for each stage but the first, or leave split out",
        )
    return cuts


def _stage_count(stages: int) -> str:
    return "1 stage" if stages == 1 else f"{stages} stages"


def _costs(forward: Sequence[Node], balance: Balance, analysis: MicrobatchAnalysis, op_costs: OpCosts) -> list[float]:
    if balance is Balance.TIME:
        return [op_costs.time(node) for node in forward]
    if balance is Balance.MEMORY:
        return _memory(forward, analysis)
    layers = [_LAYER.match(node.origin.module_path) for node in forward]
    names = [match[0] if match else "" for match in layers]
    return [float(bool(name) and name not in names[:index]) for index, name in enumerate(names)]


def _memory(forward: Sequence[Node], analysis: MicrobatchAnalysis) -> list[float]:
    """Bytes of parameters that are used first, with gradients and two moments in training, and of what is made."""
    copies = 4 if analysis.tangent else 1
    seen: set[object] = set()
    costs = []
    for node in forward:
        new = [v for v in node.operands if v in analysis.owned and v not in seen]
        seen.update(new)
        costs.append(float(copies * sum(map(bytes_of, new)) + sum(map(bytes_of, node.values))))
    return costs


def _remarks(analysis: MicrobatchAnalysis, stages: Stages, costs: OpCosts) -> list[Remark]:
    """One remark for each stage: its modules, its share of time, its parameters and its input."""
    forward = analysis.forward
    total = sum(costs.time(node) for node in forward) or 1.0
    crossing, owners = crossing_bytes(analysis, forward), stages.homes()
    starts = [
        index
        for index, node in enumerate(forward)
        if index == 0 or stages.by_node[node] != stages.by_node[forward[index - 1]]
    ]
    remarks = []
    for stage, (start, end) in enumerate(pairwise((*starts, len(forward)))):
        share = sum(costs.time(node) for node in forward[start:end]) / total
        parameter_bytes = sum(bytes_of(v) for v, owner in owners.items() if owner == stage)
        message = (
            f"stage {stage}: {_range(forward[start:end])}, {share:.0%} of the forward's time, "
            f"{parameter_bytes} bytes of parameters on a rank"
        )
        if start:
            message += f"; takes {int(crossing[start])} bytes for each microbatch"
        remarks.append(Remark(CutStages.name, RemarkKind.APPLIED, message, Origin(forward[start].origin.module_path)))
    return remarks


def _range(nodes: Sequence[Node]) -> str:
    """The modules of the first and the last operation."""
    paths = [node.origin.module_path for node in nodes if node.origin.module_path]
    if not paths:
        return "operations of the model itself"
    return f'"{paths[0]}"' if paths[0] == paths[-1] else f'"{paths[0]}" to "{paths[-1]}"'
