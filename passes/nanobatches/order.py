"""The order of a function whose operations run on nanobatches.

Stages alternate: the operations that run once, then those on nanobatches, which read what the stage before has made
whole, as attention reads the keys of all nanobatches. Inside a stage, nanobatches come one after the other, or take
turns: a turn ends with a collective, which is then under way during the turns of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ...ir.bindings import Value
from ...ir.collectives import COLLECTIVES
from ...ir.module import entry, terminator
from ..graph import Node
from .placing import Placing

Step = tuple[Node, int | None]
"""An operation, and the nanobatch that it runs on; None: it runs once."""


@dataclass
class Order:
    """The order of one function's steps."""

    placing: Placing
    interleaves: bool
    _stages: dict[Node, int] = field(default_factory=dict)
    """Even: of operations that run once; odd: of operations on nanobatches."""

    def steps(self) -> Iterator[Step]:
        """All steps."""
        self._first_stages()
        if not any(self.placing.is_barrier(node.op) for node in self._nodes):
            self._delay()
        by_stage: dict[int, list[Node]] = {}
        for node in self._nodes:
            by_stage.setdefault(self._stages[node], []).append(node)
        for stage in sorted(by_stage):
            if stage % 2:
                yield from self._on_nanobatches(by_stage[stage])
            else:
                yield from ((node, None) for node in by_stage[stage])

    @property
    def _nodes(self) -> Sequence[Node]:
        return self.placing.graph.nodes

    def _first_stages(self) -> None:
        """The earliest stage of each operation; nothing moves across a custom op."""
        made: dict[Value, int] = dict.fromkeys(entry(self.placing.graph.function).arguments, 0)
        made.update((v, -1) for v in entry(self.placing.graph.function).arguments if v in self.placing.parted)
        least = last = 0
        for node in self._nodes:
            is_parted = node in self.placing.ways
            stage = max([least, *(self._ready(node, value, made[value]) for value in node.operands)])
            if stage % 2 != is_parted:
                stage += 1
            if self.placing.is_barrier(node.op):
                least = stage = max(stage, last + last % 2)
            last = max(last, stage)
            self._stages[node] = stage
            for value in node.values:
                made[value] = stage + (is_parted and value not in self.placing.parted)

    def _ready(self, node: Node, value: Value, made: int) -> int:
        """The first stage in which a node can take an operand that was made in a stage: whole ones are joined first."""
        if value not in self.placing.parted:
            return made
        waits = node not in self.placing.ways or self.placing.takes_whole(node, value)
        return made + waits

    def _delay(self) -> None:
        """Move operations of the forward to the stage that first reads them, where nanobatches are short-lived."""
        returned = set(terminator(self.placing.graph.function).operands)
        for node in reversed(self._nodes):
            if node not in self.placing.ways or node.origin.backward or node.name in COLLECTIVES:
                continue
            users = [(user, value) for value in node.values for user in self.placing.graph.users.get(value, ())]
            if not users or returned & {*node.values} or any(user.origin.backward for user, _ in users):
                continue
            self._stages[node] = max(self._stages[node], min(self._latest(*each) for each in users))

    def _latest(self, user: Node, value: Value) -> int:
        """The last stage in which an operand of a user can be made on nanobatches."""
        if user not in self.placing.ways:
            return self._stages[user] - 1
        in_parts = value in self.placing.parted and not self.placing.takes_whole(user, value)
        return self._stages[user] - (0 if in_parts else 2)

    def _on_nanobatches(self, nodes: Sequence[Node]) -> Iterator[Step]:
        for turn in _turns(nodes) if self.interleaves else [nodes]:
            for index in range(self.placing.region.parts.count):
                yield from ((node, index) for node in turn)


def _turns(nodes: Sequence[Node]) -> list[list[Node]]:
    """The operations, cut behind each collective."""
    turns: list[list[Node]] = [[]]
    for node in nodes:
        turns[-1].append(node)
        if node.name in COLLECTIVES:
            turns.append([])
    return turns
