"""Put the tasks of a pipeline in the order of its schedule: a function for each coordinate on the axis of the stages.

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

A call is a task of the microbatch that it says. What another coordinate needs is sent when it is made, and received
where it is needed first, in the order in which it was sent. A sum over time becomes adds. A parameter that several
stages use is sent by its owner at the start of the step, and its gradient's parts come back at the end. Inputs are
whole in entries, and cut into microbatches there; outputs are everyone's. A forward and a backward that the schedule
overlaps become one function, in which each hides the other's collectives.

Needs: level `comm`, segments (`split-segments`).   Keeps: values.   After it the module has entries in place of `main`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ...dsl.plan import Plan
from ...ir.attributes import dtype_of
from ...ir.locations import Origin
from ...ir.module import Level, Module
from ...ir.pipelined_module import set_pipeline_axis
from ...schedules.generators.vocabulary import share_vocabulary
from ...schedules.schedule import Kind, Schedule
from ..base import Pass, Remark, RemarkKind, Report
from ..graph import Graph, Node
from .attributes import check_cut_over_time, check_segments, segment_of
from .entries import EntryBuilder
from .messages import Messages, Transfers
from .pairs import Pairs
from .settings import Settings, settings_of
from .step import Step
from .time_axis import TimeAxis


@dataclass(frozen=True)
class OrderTasks(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "order-tasks"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    plan: Plan
    """The plan; its statement about the pipeline is used."""
    casts: bool = True
    """Whether what crosses is cast to the dtype that the plan says; not where all floats are raised for a check."""

    def run(self, module: Module) -> Report:
        if self.plan.pipeline is None:
            return Report()
        check_cut_over_time(self.name, self.plan, module)
        settings = settings_of(self.plan, module)
        check_segments(self.name, settings, module)
        graph = Graph.of(module.functions()["main"])
        segments = _segments(graph)
        schedule = _with_spread(settings, segments)
        step = Step(TimeAxis(module, graph), schedule, segments, settings.said.axis)
        messages = Messages(schedule, graph, segments)
        transfer = settings.said.transfer
        dtype = dtype_of(transfer) if self.casts else None
        pairs = Pairs(module)
        for at in range(schedule.ranks):
            transfers = Transfers(module, messages, step.makers, settings.said.axis, at, dtype)
            EntryBuilder(module, step, messages, transfers, pairs).build()
        sent = sum(len(queue) for queue in messages.queues.values())
        tasks = sum(bool(messages.calls(task)) for tasks in schedule.order for task in tasks)
        interleaved = _interleaved(pairs)
        graph.function.erase()
        set_pipeline_axis(module, settings.said.axis)
        idle = _idle_barriers(settings, schedule)
        message = f"{tasks} tasks in the order of {schedule.name}; {sent} tensors cross between stages"
        return Report(tasks, (Remark(self.name, RemarkKind.APPLIED, message, Origin()), *interleaved, *idle))


def _interleaved(pairs: Pairs) -> list[Remark]:
    """One remark for each forward that was to be interleaved with a backward."""
    found = []
    for (forward, *backward), name in pairs.made.items():
        both = " and ".join(str(node.callee) for node in (forward, *backward))
        if name is None:
            message, kind = f"{both} stay one after the other: there is no collective to hide", RemarkKind.MISSED
        else:
            message, kind = f"{both} of two microbatches are interleaved", RemarkKind.APPLIED
        found.append(Remark(OrderTasks.name, kind, message, forward.origin))
    return found


def _with_spread(settings: Settings, segments: Mapping[tuple[Kind, int], Node]) -> Schedule:
    """The schedule, with what every coordinate has a part of woven in."""
    kinds = {kind for kind, _ in segments if kind.is_shared}
    if not kinds:
        return settings.schedule
    said = settings.said
    return share_vocabulary(settings.schedule, kinds, said.barriers, settings.costs, said.memory)


def _idle_barriers(settings: Settings, schedule: Schedule) -> list[Remark]:
    """A remark where the plan says how often ranks meet, but they share nothing."""
    said = settings.said
    if schedule.shared or "barriers" not in said.spans:
        return []
    message = f'"barriers" says nothing here: no vocabulary is sharded over {said.axis}'
    return [Remark(OrderTasks.name, RemarkKind.MISSED, message, span=said.span_of("barriers"))]


def _segments(graph: Graph) -> dict[tuple[Kind, int], Node]:
    found = {}
    for node in graph.nodes:
        marked = segment_of(node.op)
        if marked is not None:
            found[marked] = node
    return found
