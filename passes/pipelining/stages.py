"""Assign each operation to a stage.

A stage's forward is a run of operations in the model's order. A backward operation goes to the last stage, not behind
the stages of its incoming gradients, that holds most of the forward values and parameters that it reads: they were
computed or used there in the forward. An operation that makes a parameter's gradient goes to a stage that uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ...costs.compute import bytes_of
from ...ir.bindings import Value
from ...ir.module import Record
from ..graph import Node
from .microbatch_analysis import MicrobatchAnalysis


def crossing_bytes(analysis: MicrobatchAnalysis, forward: Sequence[Node]) -> list[float]:
    """For each operation, the bytes that a cut right before it would send between stages."""
    position = {node: index for index, node in enumerate(forward)}
    differences = [0.0] * (len(forward) + 1)
    for index, node in enumerate(forward):
        for value in node.values:
            last = max((position[u] for u in analysis.graph.users.get(value, ()) if u in position), default=index)
            if last > index:
                differences[index + 1] += bytes_of(value)
                differences[last + 1] -= bytes_of(value)
    crossing, live = [], 0.0
    for difference in differences[: len(forward)]:
        live += difference
        crossing.append(live)
    return crossing


@dataclass
class Stages:
    """The stage of each operation that belongs to one."""

    analysis: MicrobatchAnalysis
    count: int
    """How many virtual stages there are."""
    by_node: dict[Node, int] = field(default_factory=dict)

    @staticmethod
    def from_cuts(analysis: MicrobatchAnalysis, cuts: Sequence[int]) -> Stages:
        """Stages from the index of the first forward operation of each stage but the first."""
        stages = Stages(analysis, len(cuts) + 1)
        stage = 0
        for index, node in enumerate(analysis.forward):
            while stage < len(cuts) and index >= cuts[stage]:
                stage += 1
            stages.by_node[node] = stage
        for node in analysis.backward:
            stages.by_node[node] = stages._backward_stage(node)
        return stages

    def holders(self, value: Value) -> frozenset[int] | None:
        """The stages that hold a value of the forward; None: every stage holds it or can compute it."""
        if value not in self._holders:
            self._holders[value] = self._find_holders(value)
        return self._holders[value]

    def homes(self) -> dict[Value, int]:
        """The stage that owns each parameter and each buffer that changes: the first that uses it, else the first."""
        return {
            value: min(self.holders(value) or {0})
            for value, record in self.analysis.graph.arguments
            if value in self.analysis.owned and is_owned_kind(record) and not self._is_shared(value)
        }

    def _is_shared(self, value: Value) -> bool:
        """Whether every rank of the pipeline holds its part of a parameter."""
        users = self.analysis.graph.users.get(value, ())
        return any(node in self.analysis.shared_work for node in users) and not self._forward_users(value)

    @cached_property
    def _holders(self) -> dict[Value, frozenset[int] | None]:
        return {}

    @cached_property
    def _parameters(self) -> dict[Value, Value]:
        """For each term of a parameter's gradient, the parameter."""
        graph = self.analysis.graph
        by_name = {record["name"]: v for v, record in graph.arguments if record.get("kind") == "parameter"}
        parameters: dict[Value, Value] = {}
        after = {*self.analysis.after, *self.analysis.late}
        for value, record in graph.results:
            if record.get("kind") == "gradient" and record["name"] in by_name:
                nodes = graph.cone([value], within=after)
                terms = {value, *(v for node in nodes for v in node.operands)}
                parameters.update(dict.fromkeys(terms, by_name[record["name"]]))
        return parameters

    def _find_holders(self, value: Value) -> frozenset[int] | None:
        graph, analysis = self.analysis.graph, self.analysis
        node = graph.maker.get(value)
        if node is not None and (analysis.is_light(node) or value in analysis.owned) and node.operands:
            return self._common_holders([self.holders(v) for v in node.operands])
        used = frozenset(self.by_node[u] for u in self._forward_users(value))
        if node is None:
            return (used or None) if value in analysis.owned else None
        if node not in analysis.anchored or node in analysis.tangent or node in analysis.shared_work:
            return None
        return used | {self.by_node[node]}

    def _forward_users(self, value: Value) -> list[Node]:
        """The forward operations that use a value, directly or through values computed from parameters alone."""
        users, waiting, seen = list[Node](), [value], {value}
        while waiting:
            for user in self.analysis.graph.users.get(waiting.pop(), ()):
                if user in self.by_node and user not in self.analysis.tangent:
                    users.append(user)
                derived = [v for v in user.values if v in self.analysis.owned and v not in seen]
                seen.update(derived)
                waiting += derived
        return users

    def _backward_stage(self, node: Node) -> int:
        graph = self.analysis.graph
        makers = [graph.maker.get(v) for v in node.operands]
        latest = min(
            (self.by_node[m] for m in makers if m in self.by_node and m in self.analysis.tangent),
            default=self.count - 1,
        )
        parameters = [self._parameters[v] for v in node.values if v in self._parameters]
        holders = [stages for v in (*node.operands, *parameters) if (stages := self.holders(v)) is not None]
        hits = [sum(stage in stages for stages in holders) for stage in range(latest + 1)]
        return max(stage for stage, count in enumerate(hits) if count == max(hits))

    @staticmethod
    def _common_holders(holders: Sequence[frozenset[int] | None]) -> frozenset[int] | None:
        """The stages that hold all of the values; if none does, those that hold any."""
        known = [stages for stages in holders if stages is not None]
        if not known:
            return None
        return frozenset.intersection(*known) or frozenset.union(*known)


def is_owned_kind(record: Record) -> bool:
    """Whether an argument is a parameter or a buffer."""
    return record.get("kind") in ("parameter", "buffer")
