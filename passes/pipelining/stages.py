"""Which stage each operation belongs to.

Forward work is cut where it stands: a stage is a run of operations in the model's order. A backward operation goes to
the last stage, not behind those that its gradients come from, where the forward's values and the parameters that it
reads are at hand: made there, or taken there by the forward. What gives a parameter's gradient goes to a stage that
uses the parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ...ir.bindings import Value
from ...ir.module import Record
from ..graph import Node
from .op_costs import bytes_of
from .time_axis import TimeAxis


def crossing_bytes(time: TimeAxis, forward: Sequence[Node]) -> list[float]:
    """For each operation, the bytes that a cut right before it would send from stage to stage."""
    position = {node: at for at, node in enumerate(forward)}
    change = [0.0] * (len(forward) + 1)
    for at, node in enumerate(forward):
        for value in node.values:
            last = max((position[u] for u in time.graph.users.get(value, ()) if u in position), default=at)
            if last > at:
                change[at + 1] += bytes_of(value)
                change[last + 1] -= bytes_of(value)
    crossing, live = [], 0.0
    for each in change[: len(forward)]:
        live += each
        crossing.append(live)
    return crossing


@dataclass
class Stages:
    """The stage of every operation that belongs to one."""

    time: TimeAxis
    count: int
    """How many virtual stages there are."""
    of: dict[Node, int] = field(default_factory=dict)

    @staticmethod
    def cut(time: TimeAxis, cuts: Sequence[int]) -> Stages:
        """Stages from where the forward is cut: the number of the first operation of each stage but the first."""
        made = Stages(time, len(cuts) + 1)
        stage = 0
        for at, node in enumerate(time.forward):
            while stage < len(cuts) and at >= cuts[stage]:
                stage += 1
            made.of[node] = stage
        for node in time.backward:
            made.of[node] = made._backward_stage(node)
        return made

    def holders(self, value: Value) -> frozenset[int] | None:
        """The stages that have a value of the forward at hand; None for what every stage has or can make."""
        if value not in self._holders:
            self._holders[value] = self._find_holders(value)
        return self._holders[value]

    def homes(self) -> dict[Value, int]:
        """The stage that owns each parameter and each buffer that changes: the first that uses it, else the first."""
        return {
            value: min(self.holders(value) or {0})
            for value, record in self.time.graph.arguments
            if value in self.time.owned and is_owned_kind(record) and not self._is_spread(value)
        }

    def _is_spread(self, value: Value) -> bool:
        """Whether every coordinate has its own part of a parameter."""
        users = self.time.graph.users.get(value, ())
        return any(node in self.time.spread for node in users) and not self._forward_users(value)

    @cached_property
    def _holders(self) -> dict[Value, frozenset[int] | None]:
        return {}

    @cached_property
    def _parameters(self) -> dict[Value, Value]:
        """For each addend of a parameter's gradient the parameter."""
        graph = self.time.graph
        by_name = {record["name"]: v for v, record in graph.arguments if record.get("kind") == "parameter"}
        found: dict[Value, Value] = {}
        after = {*self.time.after, *self.time.late}
        for value, record in graph.results:
            if record.get("kind") == "gradient" and record["name"] in by_name:
                nodes = graph.cone([value], within=after)
                addends = {value, *(v for node in nodes for v in node.operands)}
                found.update(dict.fromkeys(addends, by_name[record["name"]]))
        return found

    def _find_holders(self, value: Value) -> frozenset[int] | None:
        graph, time = self.time.graph, self.time
        node = graph.maker.get(value)
        if node is not None and (time.is_light(node) or value in time.owned) and node.operands:
            return self._common([self.holders(v) for v in node.operands])
        used = frozenset(self.of[u] for u in self._forward_users(value))
        if node is None:
            return (used or None) if value in time.owned else None
        if node not in time.anchored or node in time.tangent or node in time.spread:
            return None
        return used | {self.of[node]}

    def _forward_users(self, value: Value) -> list[Node]:
        """The forward operations that use a value, also through what is made of parameters alone."""
        found, waiting, seen = list[Node](), [value], {value}
        while waiting:
            for user in self.time.graph.users.get(waiting.pop(), ()):
                if user in self.of and user not in self.time.tangent:
                    found.append(user)
                more = [v for v in user.values if v in self.time.owned and v not in seen]
                seen.update(more)
                waiting += more
        return found

    def _backward_stage(self, node: Node) -> int:
        graph = self.time.graph
        makers = [graph.maker.get(v) for v in node.operands]
        latest = min((self.of[m] for m in makers if m in self.of and m in self.time.tangent), default=self.count - 1)
        given = [self._parameters[v] for v in node.values if v in self._parameters]
        wanted = [held for v in (*node.operands, *given) if (held := self.holders(v)) is not None]
        fits = [sum(stage in held for held in wanted) for stage in range(latest + 1)]
        return max(stage for stage, number in enumerate(fits) if number == max(fits))

    @staticmethod
    def _common(held: Sequence[frozenset[int] | None]) -> frozenset[int] | None:
        """The stages that have all of them; where none has, those that have any."""
        said = [each for each in held if each is not None]
        if not said:
            return None
        return frozenset.intersection(*said) or frozenset.union(*said)


def is_owned_kind(record: Record) -> bool:
    """Whether an argument is a parameter or a buffer."""
    return record.get("kind") in ("parameter", "buffer")
