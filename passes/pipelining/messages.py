"""What crosses from rank to rank in a step: who sends which value of which microbatch to whom, in which order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ...ir.bindings import Value
from ...schedules.schedule import Kind, Schedule, Task
from .graph import Graph, Node

Parcel = tuple[Value, int]
"""A value of one microbatch."""


@dataclass
class Messages:
    """Between coordinates on the axis of the stages. What one sends another arrives in the order in which it is sent."""

    schedule: Schedule
    graph: Graph
    segments: Mapping[tuple[Kind, int], Node]
    queues: dict[tuple[int, int], list[Parcel]] = field(default_factory=lambda: defaultdict(list))
    """By (source, destination): all that is sent while microbatches are worked on, in order."""
    _after: dict[tuple[int, Task], list[tuple[int, Parcel]]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        takers = self._takers()
        for source, tasks in enumerate(self.schedule.order):
            for task in tasks:
                node = self.segment(task)
                for value in () if node is None else node.values:
                    for to in sorted(takers.get(value, set()) - {source}):
                        parcel = (value, task.microbatch)
                        self.queues[source, to].append(parcel)
                        self._after[source, task].append((to, parcel))

    def segment(self, task: Task) -> Node | None:
        """The call that does a task; None where the stage has no such work."""
        return self.segments.get((task.kind, task.stage))

    def sent_after(self, source: int, task: Task) -> Iterable[tuple[int, Parcel]]:
        """What a coordinate sends when it has done a task, each with where to."""
        return self._after.get((source, task), ())

    def makers(self) -> dict[Value, int]:
        """The coordinate at which each result of a segment is made."""
        placement = self.schedule.placement
        return {v: placement[stage] for (_, stage), node in self.segments.items() for v in node.values}

    def _takers(self) -> dict[Value, set[int]]:
        """The coordinates whose segments take each value."""
        found: dict[Value, set[int]] = defaultdict(set)
        for (_, stage), node in self.segments.items():
            for value in node.operands:
                found[value].add(self.schedule.placement[stage])
        return found
