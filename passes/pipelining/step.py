"""What of a step is done where, beside the tasks: before the microbatches, and when all of them are done.

Before them, each coordinate on the axis of the stages makes what its segments take and inputs and parameters decide;
a parameter is sent to it by its owner, where that is another. After them, sums over time go to where what is made of
them is wanted: a gradient to its parameter's owner, an output to everyone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from ...ir.bindings import Value
from ...ir.module import Record
from ...schedules.schedule import Kind, Schedule
from ..graph import Graph, Node
from .attributes import SPREAD, meeting_of
from .spread import is_over, meets
from .time_axis import TimeAxis

OWNED = ("parameter", "buffer")
_RESULTS_OF_OWNED = ("gradient", "buffer")


@dataclass
class Step:
    """Main, in segments, as the coordinates on the axis of the stages share it."""

    time: TimeAxis
    schedule: Schedule
    segments: Mapping[tuple[Kind, int], Node]
    axis: str
    """The axis of the stages."""

    @property
    def graph(self) -> Graph:
        """Main's."""
        return self.time.graph

    @cached_property
    def early(self) -> set[Node]:
        """What is done before the microbatches."""
        return {n for n in self.graph.nodes if n not in self._tasks and n not in self.time.after} - set(self.time.late)

    @cached_property
    def makers(self) -> dict[Value, int]:
        """The coordinate that makes each result of a stage's segment; those of spread segments every one makes."""
        of_stages = {key: node for key, node in self.segments.items() if key[1] != SPREAD}
        return {v: self._at(stage) for (_, stage), node in of_stages.items() for v in node.values}

    @cached_property
    def everywhere(self) -> set[Value]:
        """The results of spread segments, which every coordinate makes."""
        calls = [node for (_, stage), node in self.segments.items() if stage == SPREAD]
        met = [node for nodes in self.meetings.values() for node in nodes]
        return {v for node in (*calls, *met) for v in node.values}

    @cached_property
    def meetings(self) -> dict[Kind, list[Node]]:
        """What all coordinates do together behind the segments of a kind, in order."""
        found: dict[Kind, list[Node]] = {}
        for node in self.graph.nodes:
            kind = meeting_of(node.op)
            if kind is not None:
                found.setdefault(kind, []).append(node)
        return found

    @cached_property
    def homes(self) -> dict[Value, int]:
        """The coordinate that owns each parameter and each buffer that changes: of the first forward that uses it.

        What is cut over the axis of the stages is at home everywhere.
        """
        first: dict[Value, tuple[Kind, int]] = {}
        for key in sorted(self.segments):
            for value in self._arguments(self._before([self.segments[key]])) | set(self.segments[key].operands):
                first.setdefault(value, key)
        arguments = [(v, r) for v, r in self.graph.arguments if not is_over(v, self.axis)]
        owned = [v for v, record in arguments if v in self.time.owned and record.get("kind") in OWNED]
        return {v: self._at(first[v][1]) if v in first else 0 for v in owned}

    def before(self, coordinate: int) -> set[Node]:
        """What is done before the microbatches at a coordinate."""
        return self._before_all[coordinate]

    def after(self, coordinate: int) -> set[Node]:
        """What is done at a coordinate when sums over time are there."""
        return self._after_all[coordinate]

    def taken(self, coordinate: int) -> set[Value]:
        """The arguments of main that a coordinate uses or owns."""
        return self._taken_all[coordinate]

    def takers(self, value: Value) -> list[int]:
        """The coordinates that use an argument of main, or own it."""
        return [at for at in range(self.schedule.ranks) if value in self.taken(at)]

    def sum_maker(self, node: Node) -> int | None:
        """The coordinate at which a sum over time is added up; None for every one that wants it."""
        return None if node.operands[0] in self.everywhere else self.makers.get(node.operands[0], 0)

    def sum_takers(self, node: Node) -> list[int]:
        """The coordinates that want a sum over time, or take part in what is done with it."""
        [value] = node.values
        if meets(node, self.axis):
            return list(range(self.schedule.ranks))
        found = {at for at in range(self.schedule.ranks) if any(value in n.operands for n in self.after(at))}
        for maker in (self.maker(v, record) for v, record in self.graph.results if v == value):
            found.update(range(self.schedule.ranks) if maker is None else [maker])
        return sorted(found)

    @cached_property
    def _owners(self) -> dict[str, int]:
        """The coordinate that owns each parameter and changing buffer, by name."""
        return {r["name"]: self.homes[v] for v, r in self.graph.arguments if v in self.homes}

    def maker(self, value: Value, record: Record) -> int | None:
        """The coordinate that makes a result of main: its parameter's owner, or where most of it was made.

        None for what every coordinate makes (its part of).
        """
        if record.get("kind") in _RESULTS_OF_OWNED and record["name"] in self._owners:
            return self._owners[record["name"]]
        if value in self.everywhere or is_over(value, self.axis):
            return None
        if value in self.makers:
            return self.makers[value]
        sums = self.graph.cone([value], within={*self.time.after, *self.time.late}) & set(self.time.late)
        makers = [self.sum_maker(n) for n in sums]
        return min((maker for maker in makers if maker is not None), default=None if makers else 0)

    def _is_made(self, value: Value, record: Record, coordinate: int) -> bool:
        """Whether a coordinate makes a result of main."""
        return self.maker(value, record) in (coordinate, None)

    @cached_property
    def _tasks(self) -> set[Node]:
        return {*self.segments.values(), *(node for nodes in self.meetings.values() for node in nodes)}

    @cached_property
    def _before_all(self) -> list[set[Node]]:
        found = []
        for at in range(self.schedule.ranks):
            nodes: list[Node] = [*self._own(at), *self.after(at)]
            nodes += [n for n in self.time.late if self.sum_maker(n) in (at, None)]
            made = [v for v, record in self.graph.results if self._is_made(v, record, at)]
            found.append(self._before(nodes, made))
        return found

    @cached_property
    def _after_all(self) -> list[set[Node]]:
        results = [(v, self.maker(v, record)) for v, record in self.graph.results]
        together = [v for node in self.time.after if meets(node, self.axis) for v in node.values]
        found = []
        for at in range(self.schedule.ranks):
            wanted = [*together, *(v for v, maker in results if maker in (at, None))]
            found.append(self.graph.cone(wanted, within=self.time.after))
        return found

    @cached_property
    def _taken_all(self) -> list[set[Value]]:
        found = []
        for at in range(self.schedule.ranks):
            nodes = self.before(at) | self.after(at) | set(self._own(at))
            made = {v for v, record in self.graph.results if self._is_made(v, record, at)}
            found.append((self._arguments(nodes) | made | self._kept(at)) & self._all_arguments)
        return found

    def _kept(self, coordinate: int) -> set[Value]:
        """What a coordinate takes though it may not use it: what it owns; the first one what nothing uses."""
        used = self._arguments(self.graph.nodes) if coordinate == 0 else set()
        unused = self._all_arguments - used - set(self.homes) if coordinate == 0 else set()
        return {v for v, home in self.homes.items() if home == coordinate} | unused

    @cached_property
    def _all_arguments(self) -> set[Value]:
        return {v for v, _ in self.graph.arguments}

    def _own(self, coordinate: int) -> list[Node]:
        of = self.segments.items()
        own = [node for (_, stage), node in of if stage == SPREAD or self._at(stage) == coordinate]
        return [*own, *(node for nodes in self.meetings.values() for node in nodes)]

    def _before(self, nodes: Iterable[Node], values: Iterable[Value] = ()) -> set[Node]:
        return self.graph.cone([*values, *(v for n in nodes for v in n.operands)], within=self.early)

    def _arguments(self, nodes: Iterable[Node]) -> set[Value]:
        return {v for n in nodes for v in n.operands} & self._all_arguments

    def _at(self, stage: int) -> int:
        return 0 if stage == SPREAD else self.schedule.placement[stage]
