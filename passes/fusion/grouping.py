"""Which operations become one region: greedily, from producer to consumer, without cycles."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from ...ir.locations import from_location
from ...ir.operations import is_recomputed
from ...ir.pipelined_module import turn_of
from ..graph import Graph, Node
from .fusible import Role, Shape, elements, moves_elements, role_of, shape_of

MOST_OPERATIONS = 64
"""A longer chain is several regions: values that stay in registers all the way would not fit there."""


@dataclass
class Group:
    """Operations of one region under construction, or one operation that is in none."""

    nodes: list[Node]
    direction: object = None
    """What all members share: forward or backward, first or computed again, the nanobatch or microbatch by turns."""
    columns: int | None = None
    along_first: bool = False
    """Whether its reductions are along the first dims."""
    elements: int = 0
    """Of the largest result or reduced operand."""
    before: set[int] = field(default_factory=set)
    """The groups whose values it needs."""
    is_region: bool = False
    is_closed: bool = False
    """Whether a collective, message or call waits for it: what joins it later would delay that."""
    first: int = 0
    last: int = 0
    """The places of its first and last member in the program."""


@dataclass
class Grouping:
    """The groups of one function."""

    graph: Graph
    groups: dict[int, Group] = field(default_factory=dict)
    group_of: dict[Node, int] = field(default_factory=dict)

    @cached_property
    def roles(self) -> dict[Node, Role]:
        """The operations that a region may hold."""
        found = {node: role_of(node) for node in self.graph.nodes}
        return {node: role for node, role in found.items() if role is not None}

    @cached_property
    def _places(self) -> dict[Node, int]:
        return {node: place for place, node in enumerate(self.graph.nodes)}

    @cached_property
    def _behind_tangents(self) -> set[Node]:
        return self.graph.dependents(v for v, record in self.graph.arguments if record.get("kind") == "tangent")

    def regions(self) -> list[list[Node]]:
        """The members of each region, in program order."""
        ordered: Node | None = None
        for number, node in enumerate(self.graph.nodes):
            before = {self.group_of[maker] for v in node.operands if (maker := self.graph.maker.get(v)) is not None}
            if is_ordered(node):
                self._close(before)
                before |= {self.group_of[ordered]} if ordered is not None else set()
                ordered = node
            self.groups[number] = self._alone(node, before)
            self.groups[number].first = self.groups[number].last = number
            self.group_of[node] = number
            if node in self.roles:
                for other in sorted(before, reverse=True):
                    self._join(self.group_of[node], other)
        return [group.nodes for group in self.groups.values() if group.is_region and self._pays(group)]

    def _close(self, groups: set[int]) -> None:
        """Let nothing join groups that a collective, message or call waits for, at once or through others."""
        waiting = list(groups)
        while waiting:
            group = self.groups[waiting.pop()]
            if not group.is_closed:
                group.is_closed = True
                waiting += group.before

    def _alone(self, node: Node, before: set[int]) -> Group:
        role = self.roles.get(node)
        if role is None:
            return Group([node], before=before)
        shape = shape_of(node, role) or Shape(0)
        backward = from_location(node.op.location).backward
        direction = (backward, node in self._behind_tangents, is_recomputed(node.op), turn_of(node.op))
        return Group([node], direction, shape.columns, shape.along_first, shape.elements, before, is_region=True)

    def _join(self, number: int, other: int) -> None:
        """Put the newest group and one that it needs together, if that is one kernel."""
        if number == other or other not in self.groups:
            return
        later, earlier = self.groups[number], self.groups[other]
        if not self._fit(later, earlier) or self._is_between(number, other) or self._is_between(other, number):
            return
        merged = Group(
            nodes=sorted([*earlier.nodes, *later.nodes], key=self._places.__getitem__),
            direction=earlier.direction,
            columns=earlier.columns or later.columns,
            along_first=earlier.along_first or later.along_first,
            elements=max(earlier.elements, later.elements),
            before=(earlier.before | later.before) - {number, other},
            is_region=True,
            first=min(earlier.first, later.first),
            last=max(earlier.last, later.last),
        )
        del self.groups[number]
        self.groups[other] = merged
        self.group_of.update(dict.fromkeys(later.nodes, other))
        for group in self.groups.values():
            if number in group.before:
                group.before = (group.before - {number}) | {other}

    def _fit(self, later: Group, earlier: Group) -> bool:
        if not (later.is_region and earlier.is_region) or later.direction != earlier.direction:
            return False
        if later.is_closed or earlier.is_closed or len(later.nodes) + len(earlier.nodes) > MOST_OPERATIONS:
            return False
        columns = earlier.columns or later.columns
        if columns is None:
            return True
        both = earlier.columns and later.columns
        if both and (earlier.columns, earlier.along_first) != (later.columns, later.along_first):
            return False
        if earlier.columns and any(moves_elements(node) for node in later.nodes):
            return False
        space = max(group.elements for group in (earlier, later) if group.columns)
        shape = Shape(space, columns, earlier.along_first or later.along_first)
        return all(self._lies_in(node, shape) for node in (*earlier.nodes, *later.nodes))

    def _lies_in(self, node: Node, shape: Shape) -> bool:
        """Whether a kernel over rows of `shape.columns` elements, `shape.elements` in all, can hold the operation."""
        role = self.roles[node]
        if role is Role.REDUCTION:
            return shape_of(node, role) == shape
        if role is Role.FREE:
            return True
        rows = shape.elements // (shape.columns or 1)
        return all(elements(value) in (shape.elements, rows) for value in node.values)

    def _is_between(self, number: int, other: int) -> bool:
        """Whether a third group needs the other one and is needed by this one."""
        first = self.groups[other].first
        waiting = list(self.groups[number].before - {other})
        seen = set(waiting)
        while waiting:
            group = self.groups[waiting.pop()]
            if other in group.before:
                return True
            new = {each for each in group.before if each not in seen and self.groups[each].last > first}
            seen |= new
            waiting += new
        return False

    def _pays(self, group: Group) -> bool:
        return sum(self.roles[node] is not Role.FREE for node in group.nodes) > 1


def is_ordered(node: Node) -> bool:
    """Whether the operation keeps its place among those that other ranks or callers see."""
    return node.call is None or not node.name.startswith(("aten.", "nn."))


def order(items: Iterable[tuple[int, frozenset[int]]]) -> list[int]:
    """Numbers such that each comes behind those that it needs, the smallest first."""
    needs = dict(items)
    waiting = {number: set(before) for number, before in needs.items()}
    done: list[int] = []
    users: dict[int, list[int]] = {}
    for number, before in needs.items():
        for each in before:
            users.setdefault(each, []).append(number)
    ready = [number for number, before in waiting.items() if not before]
    heapq.heapify(ready)
    while ready:
        number = heapq.heappop(ready)
        done.append(number)
        for user in users.get(number, ()):
            waiting[user].discard(number)
            if not waiting[user]:
                heapq.heappush(ready, user)
    assert len(done) == len(needs), "regions need each other in a cycle"
    return done
