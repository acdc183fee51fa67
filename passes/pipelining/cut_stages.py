"""Cut the model into the stages of a pipeline: say of every operation of main which stage it belongs to.

Before                                     After
  %1 = call @layers_forward(%0, ..)          %1 = call @layers_forward(%0, ..) {stage = 0}
  %2 = call @layers_forward(%1, ..)          %2 = call @layers_forward(%1, ..) {stage = 1}
  ..                                         ..
  %8 = call @layers_backward(%7, ..)         %8 = call @layers_backward(%7, ..) {stage = 1}

A stage is a run of the forward's operations; where it begins is said by the plan (`split`), or balanced: by `time`, by
`memory`, or by `layers`. A backward operation follows what it reads of the forward. What needs no parameter belongs to
no stage: it is done where it is wanted. Layers that are folded are cut between; they are written out where that is
not enough stages, or leaves them uneven.

Needs: level `comm`, cut over time (`partition-tensors`).   Keeps: values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from ...diagnostics import StrettoError
from ...dsl.pipeline import Balance
from ...dsl.plan import Plan
from ...ir.locations import Origin
from ...ir.module import Level, Module
from ..base import Pass, Remark, RemarkKind, Report
from ..graph import Node
from ..layers.unfold_layers import unfold
from .attributes import check_cut_over_time, mark_stage
from .balance import balanced, largest
from .estimates import LINK, estimated
from .op_costs import OpCosts, bytes_of
from .settings import Settings, note_times, settings_of
from .split_points import split_places
from .spread import analysed
from .stages import Stages, crossing_bytes
from .time_axis import TimeAxis

_LAYER = re.compile(r"^(?:.*?\.)?\d+(?=\.|$)")

UNEVEN = 1.25
"""Layers are written out, to be cut inside, where the largest stage of whole ones is so much above the mean."""

_BYTE = {Balance.TIME: LINK, Balance.MEMORY: 1.0, Balance.LAYERS: 1e-12}
"""What a byte that crosses a cut costs, in the unit of what is balanced."""


@dataclass(frozen=True)
class CutStages(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "cut-stages"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    plan: Plan
    """The plan; its statement about the pipeline is used."""

    def run(self, module: Module) -> Report:
        said = self.plan.pipeline
        if said is None:
            return Report()
        check_cut_over_time(self.name, self.plan, module)
        known = OpCosts(module)
        time, spread = analysed(module, said.axis, said.barriers)
        if time.tangent:
            note_times(module, estimated(module, time, spread, dict(module.mesh)[said.axis], known))
        settings = settings_of(self.plan, module)
        time, cuts = _cuts(module, settings, known)
        stages = Stages.cut(time, cuts)
        for node, stage in stages.of.items():
            mark_stage(node.op, stage)
        return Report(len(cuts), tuple(_remarks(time, stages, known)))


def _cuts(module: Module, settings: Settings, known: OpCosts) -> tuple[TimeAxis, Sequence[int]]:
    """Where stages begin, among the forward's operations; layers are written out where a cut goes through one."""
    said = settings.said
    time, _ = analysed(module, said.axis, said.barriers)
    if len(time.forward) < settings.stages or any(inner for _, inner in split_places(module, time.forward, said)):
        unfold(module)
        time, _ = analysed(module, said.axis, said.barriers)
    if len(time.forward) < settings.stages:
        raise StrettoError(
            "E0451",
            f"the pipeline has {settings.stages} stages, but the forward has only {len(time.forward)} operations with "
            "parameters to share out",
            span=said.span,
            help="take fewer stages or chunks",
        )
    if said.split:
        return time, _said(module, time.forward, settings)
    costs = _costs(time.forward, said.balance, time, known)
    crossing = [each * _BYTE[said.balance] for each in crossing_bytes(time, time.forward)]
    cuts = balanced(costs, crossing, settings.stages)
    whole = [cost for cost, node in zip(costs, time.forward, strict=True) if node.callee is None]
    bound = max(sum(costs) / settings.stages, *whole, 0.0)
    if largest(costs, cuts) > UNEVEN * bound and unfold(module):
        return _cuts(module, settings, known)
    return time, cuts


def _said(module: Module, forward: Sequence[Node], settings: Settings) -> list[int]:
    """The cuts that the plan says."""
    said = settings.said
    cuts = [at for at, _ in split_places(module, forward, said)]
    if len(cuts) != settings.stages - 1:
        begins = ", ".join(f'"{forward[at].origin.module_path}"' for at in cuts[:8])
        where = f"stages would begin at {begins}" if begins else "no stage can begin where the first one does"
        raise StrettoError(
            "E0453",
            f"the plan begins {_counted(len(cuts))} behind the first, but the pipeline has {_counted(settings.stages)}",
            span=said.span_of("split"),
            expected=f"expected modules for {settings.stages - 1} of them",
            notes=((where, None),),
            help="name one module for each stage but the first, or leave split out",
        )
    return cuts


def _counted(stages: int) -> str:
    return "1 stage" if stages == 1 else f"{stages} stages"


def _costs(forward: Sequence[Node], balance: Balance, time: TimeAxis, known: OpCosts) -> list[float]:
    if balance is Balance.TIME:
        return [known.time(node) for node in forward]
    if balance is Balance.MEMORY:
        return _memory(forward, time)
    layers = [_LAYER.match(node.origin.module_path) for node in forward]
    names = [match[0] if match else "" for match in layers]
    return [float(bool(name) and name not in names[:at]) for at, name in enumerate(names)]


def _memory(forward: Sequence[Node], time: TimeAxis) -> list[float]:
    """Bytes of parameters that are used first, with gradients and two moments in training, and of what is made."""
    copies = 4 if time.tangent else 1
    seen: set[object] = set()
    found = []
    for node in forward:
        fresh = [v for v in node.operands if v in time.owned and v not in seen]
        seen.update(fresh)
        found.append(float(copies * sum(map(bytes_of, fresh)) + sum(map(bytes_of, node.values))))
    return found


def _remarks(time: TimeAxis, stages: Stages, costs: OpCosts) -> list[Remark]:
    """What each stage holds, and what crosses to it."""
    forward = time.forward
    whole = sum(costs.time(node) for node in forward) or 1.0
    crossing, owners = crossing_bytes(time, forward), stages.homes()
    starts = [at for at, node in enumerate(forward) if at == 0 or stages.of[node] != stages.of[forward[at - 1]]]
    found = []
    for stage, (start, end) in enumerate(pairwise((*starts, len(forward)))):
        share = sum(costs.time(node) for node in forward[start:end]) / whole
        homes = sum(bytes_of(v) for v, home in owners.items() if home == stage)
        message = (
            f"stage {stage}: {_range(forward[start:end])}, {share:.0%} of the forward's time, "
            f"{homes} bytes of parameters on a rank"
        )
        if start:
            message += f"; takes {int(crossing[start])} bytes for each microbatch"
        found.append(Remark(CutStages.name, RemarkKind.APPLIED, message, Origin(forward[start].origin.module_path)))
    return found


def _range(nodes: Sequence[Node]) -> str:
    """The modules of the first and the last operation."""
    paths = [node.origin.module_path for node in nodes if node.origin.module_path]
    if not paths:
        return "operations of the model itself"
    return f'"{paths[0]}"' if paths[0] == paths[-1] else f'"{paths[0]}" to "{paths[-1]}"'
