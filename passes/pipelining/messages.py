"""What crosses from rank to rank in a step: who sends which value of which microbatch to whom, in which order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ...ir.bindings import Value
from ...schedules.schedule import Kind, Schedule, Task
from ..graph import Graph, Node
from .attributes import SPREAD, meeting_of

Parcel = tuple[Value, int]
"""A value of one microbatch."""


@dataclass
class Messages:
    """Between coordinates on the axis of the stages; what one sends another arrives in the order of sending."""

    schedule: Schedule
    graph: Graph
    segments: Mapping[tuple[Kind, int], Node]
    queues: dict[tuple[int, int], list[Parcel]] = field(default_factory=lambda: defaultdict(list))
    """By (source, destination): all that is sent while microbatches are worked on, in order."""
    _after: dict[tuple[Node, int], list[tuple[int, Parcel]]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        takers = self._takers()
        for source, tasks in enumerate(self.schedule.order):
            for task in tasks:
                for node in () if task.kind.is_shared else self.calls(task):
                    for value in node.values:
                        for to in sorted(takers.get(value, set()) - {source}):
                            parcel = (value, task.microbatch)
                            self.queues[source, to].append(parcel)
                            self._after[node, task.microbatch].append((to, parcel))

    def calls(self, task: Task) -> list[Node]:
        """The calls that do a task, in order: for a full backward both parts, where it is parted."""
        if task.kind.is_shared:
            return [self.segments[task.kind, SPREAD]]
        kinds = (Kind.BW, Kind.B, Kind.W) if task.kind is Kind.BW else (task.kind,)
        return [self.segments[kind, task.stage] for kind in kinds if (kind, task.stage) in self.segments]

    def sent_after(self, call: Node, microbatch: int) -> Iterable[tuple[int, Parcel]]:
        """What is sent when a call has been made for a microbatch, each with where to."""
        return self._after.get((call, microbatch), ())

    def _takers(self) -> dict[Value, set[int]]:
        """The coordinates whose segments take each value."""
        found: dict[Value, set[int]] = defaultdict(set)
        everyone = range(self.schedule.ranks)
        for (_, stage), node in self.segments.items():
            for value in node.operands:
                found[value].update(everyone if stage == SPREAD else [self.schedule.placement[stage]])
        for node in self.graph.nodes:
            if meeting_of(node.op) is not None:
                for value in node.operands:
                    found[value].update(everyone)
        return found
