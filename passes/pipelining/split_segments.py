"""Put each stage's work into functions: forward, input gradient, weight gradient; what is done once stays in main.

Before                                              After
  %1 = call @layers_forward(%0, ..) {stage = 0}       %1:9 = call @forward_0(%tokens, ..) {segment = "F", stage = 0}
  %2 = aten.mm %1, ..               {stage = 1}       %2:4 = call @forward_1(%1#0, ..)    {segment = "F", stage = 1}
  ..                                                  %3:7 = call @input_gradient_1(..)   {segment = "B", stage = 1}
  %8 = comm.all_reduce %7 over ["dp", "microbatch"]   %4:2 = call @weight_gradient_1(..)  {segment = "W", stage = 1}
                                                      %8 = comm.all_reduce %4#0 over ["microbatch"]
                                                      %9 = comm.all_reduce %8 over ["dp"]

Where the schedule puts off gradients of weights, a stage's backward is parted by dependence: what the gradient of its
input needs is B, the rest is W. A sum over time is taken before the sum over ranks, which is then done once a step; an
add of two sums (a tied weight's gradients) is done after both. What only inputs decide and all microbatches share (the
count of a loss) comes from a function of its own, `shared_0`.

Needs: level `comm`, stages (`cut-stages`).   Keeps: values, up to the order of sums.
Source: Zero Bubble Pipeline Parallelism (arXiv:2401.10241) for B and W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...dsl.plan import Plan
from ...ir.bindings import Value
from ...ir.module import Level, Module
from ...schedules.schedule import Kind
from ..base import Pass, Remark, RemarkKind, Report
from ..counted_remarks import CountedRemarks
from ..graph import Graph, Node
from .attributes import SPREAD, check_cut_over_time, check_stages, segment_of, stage_of
from .backward_split import CallParter, input_gradients, part_masked
from .op_costs import bytes_of
from .outlining import NAMES, Outliner, Segment
from .settings import Settings, settings_of
from .spread import Spread, analysed
from .time_axis import TimeAxis


@dataclass(frozen=True)
class SplitSegments(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "split-segments"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    plan: Plan
    """The plan; its statement about the pipeline is used."""

    def run(self, module: Module) -> Report:
        if self.plan.pipeline is None:
            return Report()
        check_cut_over_time(self.name, self.plan, module)
        settings = settings_of(self.plan, module)
        check_stages(self.name, settings, module)
        remarks = CountedRemarks(self.name)
        parts = settings.delays_weights
        if parts:
            part_masked(module, remarks)
            _part_calls(module, settings)
        time, spread = analysed(module, settings.said.axis, settings.said.barriers)
        segments = _segments(time, spread, settings.stages, parts)
        whole = [] if not parts else _whole(time, segments)
        Outliner(module, time, segments).run()
        return Report(len(segments), (*remarks.remarks(), *whole, *_applied(module)))


def _part_calls(module: Module, settings: Settings) -> None:
    """Part the calls that give gradients of both."""
    time, _ = analysed(module, settings.said.axis, settings.said.barriers)
    parts: list[tuple[Node, frozenset[Value]]] = []
    for stage in range(settings.stages):
        backward = [node for node in time.backward if stage_of(node.op) == stage]
        if any(node.callee is not None for node in backward):
            needed = input_gradients(time, backward)
            calls = [node for node in backward if node in needed.nodes and node.callee is not None]
            parts += [(node, frozenset(v for v in node.values if v in needed.values)) for node in calls]
    parter = CallParter(module)
    for node, wanted in parts:
        parter.part(node, wanted)


def _segments(time: TimeAxis, spread: Spread, stages: int, parts: bool) -> list[Segment]:
    """Forwards from the first stage to the last, then backwards from the last to the first; around them, and in the
    middle, what every coordinate has a part of."""
    forward: list[list[Node]] = [[] for _ in range(stages)]
    backward: list[list[Node]] = [[] for _ in range(stages)]
    for nodes, by_stage in ((time.forward, forward), (time.backward, backward)):
        for node in nodes:
            stage = stage_of(node.op)
            assert stage is not None, f"no stage is noted on {node.op}"
            by_stage[stage].append(node)
    segments = [Segment(Kind.E, SPREAD, spread.nodes(Kind.E), spread.meeting(Kind.E))]
    segments += [Segment(Kind.F, stage, nodes) for stage, nodes in enumerate(forward)]
    segments += [Segment(kind, SPREAD, spread.nodes(kind), spread.meeting(kind)) for kind in (Kind.S, Kind.T)]
    for stage, nodes in reversed(list(enumerate(backward))):
        if parts:
            needed = input_gradients(time, nodes)
            first = [node for node in nodes if node in needed.nodes]
            segments.append(Segment(Kind.B, stage, first))
            segments.append(Segment(Kind.W, stage, [node for node in nodes if node not in needed.nodes]))
        else:
            segments.append(Segment(Kind.BW, stage, nodes))
    segments.append(Segment(Kind.G, SPREAD, spread.nodes(Kind.G)))
    return [segment for segment in segments if segment.nodes]


def _applied(module: Module) -> list[Remark]:
    """One remark for each segment: what it takes of other segments, which lives until it has run."""
    graph = Graph.of(module.functions()["main"])
    made = {v for node in graph.nodes if segment_of(node.op) is not None for v in node.values}
    found = []
    for node in graph.nodes:
        marked = segment_of(node.op)
        if marked is not None:
            kind, stage = marked
            kept = sum(bytes_of(v) for v in dict.fromkeys(node.operands) if v in made)
            whose = "every stage" if stage == SPREAD else f"stage {stage}"
            message = f"{NAMES[kind]} of {whose}: takes {kept} bytes a microbatch of what other segments made"
            found.append(Remark(SplitSegments.name, RemarkKind.APPLIED, message, node.origin))
    return found


def _whole(time: TimeAxis, segments: list[Segment]) -> list[Remark]:
    """One remark for each operation of B that gives a gradient that W could have given."""
    found: dict[str, Remark] = {}
    for segment in segments:
        inside = set(segment.nodes)
        for node in segment.nodes if segment.kind is Kind.B else ():
            sums = [v for v in node.values if not any(u in inside for u in time.graph.users.get(v, ()))]
            ends = [v for v in sums if any(u in time.after or u in time.late for u in time.graph.users.get(v, ()))]
            if ends and len(ends) < len(node.values):
                message = f'"{node.name}" gives gradients of its input and of weights together: both are in B'
                found.setdefault(message, Remark(SplitSegments.name, RemarkKind.MISSED, message, node.origin))
    return list(found.values())
