"""Outline each stage's work into functions: forward, input gradient, weight gradient; work done once stays in main.

Before                                              After
  %1 = call @layers_forward(%0, ..) {stage = 0}       %1:9 = call @forward_0(%tokens, ..) {segment = "F", stage = 0}
  %2 = aten.mm %1, ..               {stage = 1}       %2:4 = call @forward_1(%1#0, ..)    {segment = "F", stage = 1}
  ..                                                  %3:7 = call @input_gradient_1(..)   {segment = "B", stage = 1}
  %8 = comm.all_reduce %7 over ["dp", "microbatch"]   %4:2 = call @weight_gradient_1(..)  {segment = "W", stage = 1}
                                                      %8 = comm.all_reduce %4#0 over ["microbatch"]
                                                      %9 = comm.all_reduce %8 over ["dp"]

If the schedule delays weight gradients, a stage's backward is split by dependence: operations that the gradient of its
input needs are B, the rest is W. A sum over microbatches is reduced before the sum over ranks, which then runs once a
step; an add of two sums (a tied weight's gradients) runs after both. An early reduction (the count of a loss) takes its
operand from a function of its own, `shared_0`.

Needs: level `comm`, stages (`cut-stages`).   Keeps: values, up to the order of sums.
Source: Zero Bubble Pipeline Parallelism (arXiv:2401.10241) for B and W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...costs.compute import bytes_of
from ...dsl.plan import Plan
from ...ir.bindings import Value
from ...ir.module import Level, Module
from ...schedules.schedule import Kind
from ..base import Pass, Remark, RemarkKind, Report
from ..counted_remarks import CountedRemarks
from ..graph import Graph, Node
from .attributes import SHARED, check_microbatches, check_stages, segment_of, stage_of
from .backward_split import CallSplitter, input_gradients, split_masked
from .microbatch_analysis import MicrobatchAnalysis
from .outlining import NAMES, Outliner, Segment
from .scheduled_pipeline import ScheduledPipeline, schedule_pipeline
from .shared_work import SharedWork, analyse


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
        check_microbatches(self.name, self.plan, module)
        scheduled = schedule_pipeline(self.plan, module)
        check_stages(self.name, scheduled, module)
        remarks = CountedRemarks(self.name)
        splits_backward = scheduled.delays_weights
        if splits_backward:
            split_masked(module, remarks)
            _split_calls(module, scheduled)
        analysis, shared = analyse(module, scheduled.pipeline.axis, scheduled.pipeline.barriers)
        segments = _segments(analysis, shared, scheduled.stages, splits_backward)
        whole = [] if not splits_backward else _unsplit_gradients(analysis, segments)
        Outliner(module, analysis, segments).run()
        return Report(len(segments), (*remarks.remarks(), *whole, *_applied(module)))


def _split_calls(module: Module, scheduled: ScheduledPipeline) -> None:
    """Split calls that compute input and weight gradients together."""
    analysis, _ = analyse(module, scheduled.pipeline.axis, scheduled.pipeline.barriers)
    to_split: list[tuple[Node, frozenset[Value]]] = []
    for stage in range(scheduled.stages):
        backward = [node for node in analysis.backward if stage_of(node.op) == stage]
        if any(node.callee is not None for node in backward):
            needed = input_gradients(analysis, backward)
            calls = [node for node in backward if node in needed.nodes and node.callee is not None]
            to_split += [(node, frozenset(v for v in node.values if v in needed.values)) for node in calls]
    splitter = CallSplitter(module)
    for node, input_results in to_split:
        splitter.split(node, input_results)


def _segments(analysis: MicrobatchAnalysis, shared: SharedWork, stages: int, splits_backward: bool) -> list[Segment]:
    """Forwards from the first stage to the last, then backwards from the last to the first, with shared work before,
    between and after them."""
    forward: list[list[Node]] = [[] for _ in range(stages)]
    backward: list[list[Node]] = [[] for _ in range(stages)]
    for nodes, by_stage in ((analysis.forward, forward), (analysis.backward, backward)):
        for node in nodes:
            stage = stage_of(node.op)
            assert stage is not None, f"no stage is noted on {node.op}"
            by_stage[stage].append(node)
    segments = [Segment(Kind.E, SHARED, shared.nodes(Kind.E), shared.barrier(Kind.E))]
    segments += [Segment(Kind.F, stage, nodes) for stage, nodes in enumerate(forward)]
    segments += [Segment(kind, SHARED, shared.nodes(kind), shared.barrier(kind)) for kind in (Kind.S, Kind.T)]
    for stage, nodes in reversed(list(enumerate(backward))):
        if splits_backward:
            input_gradient = input_gradients(analysis, nodes)
            input_nodes = [node for node in nodes if node in input_gradient.nodes]
            segments.append(Segment(Kind.B, stage, input_nodes))
            segments.append(Segment(Kind.W, stage, [node for node in nodes if node not in input_gradient.nodes]))
        else:
            segments.append(Segment(Kind.BW, stage, nodes))
    segments.append(Segment(Kind.G, SHARED, shared.nodes(Kind.G)))
    return [segment for segment in segments if segment.nodes]


def _applied(module: Module) -> list[Remark]:
    """One remark for each segment: the bytes it takes from other segments, which stay alive until it has run."""
    graph = Graph.of(module.functions()["main"])
    segment_values = {v for node in graph.nodes if segment_of(node.op) is not None for v in node.values}
    remarks = []
    for node in graph.nodes:
        segment = segment_of(node.op)
        if segment is not None:
            kind, stage = segment
            stored = sum(bytes_of(v) for v in dict.fromkeys(node.operands) if v in segment_values)
            stage_name = "every stage" if stage == SHARED else f"stage {stage}"
            message = f"{NAMES[kind]} of {stage_name}: takes {stored} bytes a microbatch of what other segments made"
            remarks.append(Remark(SplitSegments.name, RemarkKind.APPLIED, message, node.origin))
    return remarks


def _unsplit_gradients(analysis: MicrobatchAnalysis, segments: list[Segment]) -> list[Remark]:
    """One remark for each operation of B that also computes a weight gradient."""
    remarks: dict[str, Remark] = {}
    for segment in segments:
        segment_nodes = set(segment.nodes)
        for node in segment.nodes if segment.kind is Kind.B else ():
            outputs = [v for v in node.values if not any(u in segment_nodes for u in analysis.graph.users.get(v, ()))]
            gradients = [
                v
                for v in outputs
                if any(u in analysis.after or u in analysis.late for u in analysis.graph.users.get(v, ()))
            ]
            if gradients and len(gradients) < len(node.values):
                message = f'"{node.name}" gives gradients of its input and of weights together: both are in B'
                remarks.setdefault(message, Remark(SplitSegments.name, RemarkKind.MISSED, message, node.origin))
    return list(remarks.values())
