"""Put the tasks of a pipeline in its schedule's order: one entry function for each coordinate on the pipeline axis.

Before                                          After (two stages, two microbatches, 1F1B)
  func @main(%tokens, ..) {                       func @main_0(%tokens, ..) {
    %1 = call @forward_0(%tokens, ..)               %1 = call @forward_0(%t0, ..)     {microbatch = 0}
    %2:2 = call @forward_1(%1, ..)                  comm.send %1 to 1 over "pp"
    %3:2 = call @backward_1(%2#0, ..)               %2 = call @forward_0(%t1, ..)     {microbatch = 1}
    %4 = call @backward_0(%3#0, ..)                 comm.send %2 to 1 over "pp"
    %5 = comm.all_reduce %4 over ["microbatch"]     %3 = comm.receive from 1 over "pp"
    ..                                              %4 = call @backward_0(%3, ..)     {microbatch = 0}
                                                    ..
                                                    %9 = aten.add %4, %8

A call is a task of the microbatch in its attribute. A value that another coordinate needs is sent right after the call
that computes it, and received before its first use, in the order of sending. A sum over microbatches becomes adds. A
parameter that several stages use is sent by its owner at the start of the step, and the terms of its gradient are sent
back at the end. Entries take whole inputs and slice them into microbatches; every entry returns all outputs. A forward
and a backward that the schedule overlaps become one function, in which each hides the other's collectives.

Needs: level `comm`, segments (`split-segments`).   Keeps: values.   After it the module has entries in place of `main`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ...diagnostics import Span, StrettoError
from ...dsl.pipeline import Pipeline
from ...dsl.plan import Plan
from ...ir.attributes import dtype_of
from ...ir.locations import Origin
from ...ir.module import Level, Module
from ...ir.pipelined_module import set_pipeline_axis
from ...schedules.generators.vocabulary import share_vocabulary
from ...schedules.schedule import Kind, Schedule
from ..base import Pass, Remark, RemarkKind, Report
from ..graph import Graph, Node
from .assignment import StepAssignment
from .attributes import check_microbatches, check_segments, segment_of
from .entries import EntryBuilder
from .messages import Messages, Transfers
from .microbatch_analysis import MicrobatchAnalysis
from .pairs import OverlappedPairs
from .scheduled_pipeline import ScheduledPipeline, schedule_pipeline


@dataclass(frozen=True)
class OrderTasks(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "order-tasks"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    plan: Plan
    """The plan; its statement about the pipeline is used."""
    casts: bool = True
    """Whether messages are cast to the plan's `transfer` format; false if a check raises all floats to float64."""

    def run(self, module: Module) -> Report:
        if self.plan.pipeline is None:
            return Report()
        check_microbatches(self.name, self.plan, module)
        scheduled = schedule_pipeline(self.plan, module)
        check_segments(self.name, scheduled, module)
        graph = Graph.of(module.functions()["main"])
        segments = _segments(graph)
        schedule = _with_shared_tasks(scheduled, segments)
        assignment = StepAssignment(MicrobatchAnalysis(module, graph), schedule, segments, scheduled.pipeline.axis)
        messages = Messages(schedule, graph, segments)
        _check_midway(assignment, messages, scheduled.pipeline)
        transfer = scheduled.pipeline.transfer
        dtype = dtype_of(transfer) if self.casts else None
        pairs = OverlappedPairs(module)
        for coordinate in range(schedule.ranks):
            transfers = Transfers(module, messages, assignment.makers, scheduled.pipeline.axis, coordinate, dtype)
            EntryBuilder(module, assignment, messages, transfers, pairs).build()
        sent = sum(len(queue) for queue in messages.queues.values())
        tasks = sum(bool(messages.calls(task)) for tasks in schedule.order for task in tasks)
        interleaved = _interleaved(pairs)
        graph.function.erase()
        set_pipeline_axis(module, scheduled.pipeline.axis)
        idle = _idle_barriers(scheduled, schedule)
        message = f"{tasks} tasks in the order of {schedule.name}; {sent} tensors cross between stages"
        return Report(tasks, (Remark(self.name, RemarkKind.APPLIED, message, Origin()), *interleaved, *idle))


def _check_midway(assignment: StepAssignment, messages: Messages, pipeline: Pipeline) -> None:
    """Raise E0456 for a backward that needs a sum over microbatches, and runs before the last forward."""
    analysis, schedule = assignment.analysis, messages.schedule
    values = {v: node for node in analysis.midway for v in node.values}
    for coordinate, tasks in enumerate(schedule.order):
        turn = messages.turn(coordinate)
        for task in tasks[:turn]:
            needed = [v for node in messages.calls(task) for v in node.operands if v in values]
            if needed:
                sums = [n for n in analysis.midway if analysis.joins_microbatches(n)]
                cone = analysis.graph.cone(needed[:1])
                origin = next(n for n in sums if n in cone).origin
                where = f' in "{origin.module_path}"' if origin.module_path else ""
                raise StrettoError(
                    "E0456",
                    f"the gradient of a loss{where} needs a sum over all microbatches, but {schedule.name} runs {task} "
                    f"before {tasks[turn - 1]}",
                    span=pipeline.span_of("schedule"),
                    expected="expected a schedule whose backwards come after all forwards",
                    notes=(("the sum is made here", Span(origin.file, origin.line)),) if origin.file else (),
                    help="take the schedule gpipe or breadth-first, with recompute if memory is short, or say in the "
                    "pipeline that the loss is the mean of those of its microbatches: per microbatch",
                )


def _interleaved(pairs: OverlappedPairs) -> list[Remark]:
    """One remark for each forward that was to be interleaved with a backward."""
    remarks = []
    for (forward, *backward), name in pairs.functions.items():
        both = " and ".join(str(node.callee) for node in (forward, *backward))
        if name is None:
            message, kind = f"{both} stay one after the other: there is no collective to hide", RemarkKind.MISSED
        else:
            message, kind = f"{both} of two microbatches are interleaved", RemarkKind.APPLIED
        remarks.append(Remark(OrderTasks.name, kind, message, forward.origin))
    return remarks


def _with_shared_tasks(scheduled: ScheduledPipeline, segments: Mapping[tuple[Kind, int], Node]) -> Schedule:
    """The schedule with the shared tasks inserted."""
    kinds = {kind for kind, _ in segments if kind.is_shared}
    if not kinds:
        return scheduled.schedule
    pipeline = scheduled.pipeline
    return share_vocabulary(scheduled.schedule, kinds, pipeline.barriers, scheduled.costs, pipeline.memory)


def _idle_barriers(scheduled: ScheduledPipeline, schedule: Schedule) -> list[Remark]:
    """A remark if the plan sets `barriers` but there are no shared tasks."""
    pipeline = scheduled.pipeline
    if schedule.shared or "barriers" not in pipeline.spans:
        return []
    message = f'"barriers" says nothing here: no vocabulary is sharded over {pipeline.axis}'
    return [Remark(OrderTasks.name, RemarkKind.MISSED, message, span=pipeline.span_of("barriers"))]


def _segments(graph: Graph) -> dict[tuple[Kind, int], Node]:
    segments = {}
    for node in graph.nodes:
        segment = segment_of(node.op)
        if segment is not None:
            segments[segment] = node
    return segments
