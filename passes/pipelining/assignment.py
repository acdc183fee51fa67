"""Assign values and work outside of tasks to coordinates on the pipeline axis.

Before the microbatches, each coordinate computes the operands of its segments that depend on inputs and parameters
only; a parameter that another coordinate owns is received from it. After them, a sum over microbatches is sent to the
coordinates that use it: a gradient to its parameter's owner, an output to all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from ...ir.bindings import Value
from ...ir.module import Record
from ...schedules.schedule import Kind, Schedule
from ..graph import Graph, Node
from .attributes import SHARED, barrier_of
from .microbatch_analysis import MicrobatchAnalysis
from .shared_work import is_collective_over, varies_over

OWNED = ("parameter", "buffer")
_RESULTS_OF_OWNED = ("gradient", "buffer")


@dataclass
class StepAssignment:
    """Which coordinate on the pipeline axis owns and computes what of a main in segments."""

    analysis: MicrobatchAnalysis
    schedule: Schedule
    segments: Mapping[tuple[Kind, int], Node]
    axis: str
    """The pipeline axis."""

    @property
    def graph(self) -> Graph:
        """The graph of main."""
        return self.analysis.graph

    @cached_property
    def early(self) -> set[Node]:
        """The nodes that run before the microbatches."""
        return {n for n in self.graph.nodes if n not in self._tasks and n not in self.analysis.after} - set(
            self.analysis.late
        )

    @cached_property
    def makers(self) -> dict[Value, int]:
        """The coordinate that computes each result of a stage's segment; results of shared segments are not in it."""
        of_stages = {key: node for key, node in self.segments.items() if key[1] != SHARED}
        return {v: self._coordinate(stage) for (_, stage), node in of_stages.items() for v in node.values}

    @cached_property
    def made_everywhere(self) -> set[Value]:
        """The results of shared segments and barriers, which every coordinate computes."""
        calls = [node for (_, stage), node in self.segments.items() if stage == SHARED]
        barrier_ops = [node for nodes in self.barriers.values() for node in nodes]
        return {v for node in (*calls, *barrier_ops) for v in node.values}

    @cached_property
    def barriers(self) -> dict[Kind, list[Node]]:
        """The nodes of the barrier after the shared segments of a kind, in order."""
        barriers: dict[Kind, list[Node]] = {}
        for node in self.graph.nodes:
            kind = barrier_of(node.op)
            if kind is not None:
                barriers.setdefault(kind, []).append(node)
        return barriers

    @cached_property
    def owners(self) -> dict[Value, int]:
        """The coordinate that owns each parameter and each changing buffer: that of the first forward that uses it.

        Parameters that the pipeline axis shards have no single owner, and are not in it.
        """
        first: dict[Value, tuple[Kind, int]] = {}
        for key in sorted(self.segments):
            for value in self._arguments(self._before([self.segments[key]])) | set(self.segments[key].operands):
                first.setdefault(value, key)
        arguments = [(v, r) for v, r in self.graph.arguments if not varies_over(v, self.axis)]
        owned = [v for v, record in arguments if v in self.analysis.owned and record.get("kind") in OWNED]
        return {v: self._coordinate(first[v][1]) if v in first else 0 for v in owned}

    def before(self, coordinate: int) -> set[Node]:
        """The nodes that a coordinate runs before the microbatches."""
        return self._once_by_coordinate[coordinate].difference(self.analysis.midway)

    def midway(self, coordinate: int) -> list[Node]:
        """The nodes that a coordinate runs between its forwards and its backwards, in order."""
        return [node for node in self.analysis.midway if node in self._once_by_coordinate[coordinate]]

    def after(self, coordinate: int) -> set[Node]:
        """The nodes that a coordinate runs after sums over microbatches."""
        return self._after_by_coordinate[coordinate]

    def arguments_of(self, coordinate: int) -> set[Value]:
        """The arguments of main that a coordinate uses or owns."""
        return self._arguments_by_coordinate[coordinate]

    def users_of(self, value: Value) -> list[int]:
        """The coordinates that use an argument of main, or own it."""
        return [coordinate for coordinate in range(self.schedule.ranks) if value in self.arguments_of(coordinate)]

    def sum_maker(self, node: Node) -> int | None:
        """The coordinate that accumulates a sum over microbatches; None: every coordinate that uses it."""
        return None if node.operands[0] in self.made_everywhere else self.makers.get(node.operands[0], 0)

    def sum_users(self, node: Node) -> list[int]:
        """The coordinates that use a sum over microbatches, or take part in a collective on it."""
        [value] = node.values
        if is_collective_over(node, self.axis):
            return list(range(self.schedule.ranks))
        coordinates = {
            coordinate
            for coordinate in range(self.schedule.ranks)
            if any(value in n.operands for n in self.after(coordinate))
        }
        for maker in (self.maker(v, record) for v, record in self.graph.results if v == value):
            coordinates.update(range(self.schedule.ranks) if maker is None else [maker])
        return sorted(coordinates)

    @cached_property
    def _owner_by_name(self) -> dict[str, int]:
        """The coordinate that owns each parameter and changing buffer, by name."""
        return {r["name"]: self.owners[v] for v, r in self.graph.arguments if v in self.owners}

    def maker(self, value: Value, record: Record) -> int | None:
        """The coordinate that computes a result of main: its parameter's owner, or the one that accumulates its sum.

        None if every coordinate computes it, or its part of it.
        """
        if record.get("kind") in _RESULTS_OF_OWNED and record["name"] in self._owner_by_name:
            return self._owner_by_name[record["name"]]
        if value in self.made_everywhere or varies_over(value, self.axis):
            return None
        if value in self.makers:
            return self.makers[value]
        sums = self.graph.cone([value], within={*self.analysis.after, *self.analysis.late}) & set(self.analysis.late)
        makers = [self.sum_maker(n) for n in sums]
        return min((maker for maker in makers if maker is not None), default=None if makers else 0)

    def _is_made(self, value: Value, record: Record, coordinate: int) -> bool:
        """Whether a coordinate computes a result of main."""
        return self.maker(value, record) in (coordinate, None)

    @cached_property
    def _tasks(self) -> set[Node]:
        return {*self.segments.values(), *(node for nodes in self.barriers.values() for node in nodes)}

    @cached_property
    def _once_by_coordinate(self) -> list[set[Node]]:
        """By coordinate, the nodes that it runs before the microbatches or between forwards and backwards."""
        once = []
        for coordinate in range(self.schedule.ranks):
            nodes: list[Node] = [*self._coordinate_work(coordinate), *self.after(coordinate)]
            nodes += [n for n in self.analysis.late if self.sum_maker(n) in (coordinate, None)]
            results = [v for v, record in self.graph.results if self._is_made(v, record, coordinate)]
            once.append(self._before(nodes, results))
        return once

    @cached_property
    def _after_by_coordinate(self) -> list[set[Node]]:
        results = [(v, self.maker(v, record)) for v, record in self.graph.results]
        joint = [v for node in self.analysis.after if is_collective_over(node, self.axis) for v in node.values]
        after = []
        for coordinate in range(self.schedule.ranks):
            values = [*joint, *(v for v, maker in results if maker in (coordinate, None))]
            after.append(self.graph.cone(values, within=self.analysis.after))
        return after

    @cached_property
    def _arguments_by_coordinate(self) -> list[set[Value]]:
        arguments = []
        for coordinate in range(self.schedule.ranks):
            nodes = self._once_by_coordinate[coordinate] | self.after(coordinate)
            nodes |= set(self._coordinate_work(coordinate))
            results = {v for v, record in self.graph.results if self._is_made(v, record, coordinate)}
            arguments.append(
                (self._arguments(nodes) | results | self._owned_or_unused(coordinate)) & self._all_arguments
            )
        return arguments

    def _owned_or_unused(self, coordinate: int) -> set[Value]:
        """The arguments that a coordinate has even if unused: those it owns, and on the first those nothing uses."""
        used = self._arguments(self.graph.nodes) if coordinate == 0 else set()
        unused = self._all_arguments - used - set(self.owners) if coordinate == 0 else set()
        return {v for v, owner in self.owners.items() if owner == coordinate} | unused

    @cached_property
    def _all_arguments(self) -> set[Value]:
        return {v for v, _ in self.graph.arguments}

    def _coordinate_work(self, coordinate: int) -> list[Node]:
        segments = self.segments.items()
        own = [node for (_, stage), node in segments if stage == SHARED or self._coordinate(stage) == coordinate]
        return [*own, *(node for nodes in self.barriers.values() for node in nodes)]

    def _before(self, nodes: Iterable[Node], values: Iterable[Value] = ()) -> set[Node]:
        return self.graph.cone([*values, *(v for n in nodes for v in n.operands)], within=self.early)

    def _arguments(self, nodes: Iterable[Node]) -> set[Value]:
        return {v for n in nodes for v in n.operands} & self._all_arguments

    def _coordinate(self, stage: int) -> int:
        return 0 if stage == SHARED else self.schedule.placement[stage]
