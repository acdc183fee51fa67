"""Find a small graph inside a large one, by dataflow.

A pattern's values without a maker in the pattern are free: they match any value of their type. Operations match if
names, constants and result types are equal; the operands of sums and products match in either order. Two nodes of a
pattern may match one node, since equal computations may have been merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .dataflow import Dataflow, Node, Ref, Tensor

COMMUTATIVE = frozenset({"aten.add.Tensor", "aten.mul.Tensor"})
"""Operations whose arguments `self` and `other` may be swapped (a sum only without `alpha`)."""

Values = dict[Ref, Ref]
"""From values of the pattern to values of the graph."""


@dataclass(frozen=True)
class Match:
    """One occurrence of a pattern."""

    values: Values
    nodes: tuple[Node, ...]
    """The nodes of the graph, in the order in which they were matched."""


def matches(pattern: Dataflow, nodes: Sequence[Node], graph: Dataflow, bound: Mapping[Ref, Ref]) -> Iterator[Match]:
    """All matches of `nodes` of `pattern` in `graph`, with some of their values `bound`."""
    yield from _Search(pattern, graph).extend(dict(bound), list(nodes), ())


class _Search:
    def __init__(self, pattern: Dataflow, graph: Dataflow) -> None:
        self._pattern = pattern
        self._graph = graph

    def extend(self, values: Values, remaining: list[Node], matched: tuple[Node, ...]) -> Iterator[Match]:
        """Match the remaining nodes, the one with the fewest candidates first."""
        if not remaining:
            yield Match(values, matched)
            return
        node = min(remaining, key=lambda n: self._effort(n, values))
        others = [n for n in remaining if n is not node]
        for candidate in self._candidates(node, values):
            for extended in self._unify(node, candidate, values):
                yield from self.extend(extended, others, (*matched, candidate))

    def _effort(self, node: Node, values: Values) -> int:
        """An upper bound of a node's candidates; nodes without known values come last."""
        if any(ref in values for ref in node.results):
            return 0
        uses = [len(self._graph.users[values[ref]]) for ref in node.operands() if ref in values]
        return min(uses) if uses else len(self._graph.nodes) + len(self._graph.by_name[node.name])

    def _candidates(self, node: Node, values: Values) -> list[Node]:
        for ref in node.results:
            if ref in values:
                maker = self._graph.producer(values[ref], node.name)
                return [] if maker is None else [maker]
        known = [values[ref] for ref in node.operands() if ref in values]
        if not known:
            return self._graph.by_name[node.name]
        return self._graph.users_of(min(known, key=lambda ref: len(self._graph.users[ref])), node.name)

    def _unify(self, node: Node, candidate: Node, values: Values) -> Iterator[Values]:
        """`values` extended by those that follow if `node` is `candidate`, for each order of its operands."""
        if node.name != candidate.name or node.arguments.keys() != candidate.arguments.keys():
            return
        bound = self._bind_all(zip(node.results, candidate.results, strict=False), values)
        if bound is None or len(node.results) != len(candidate.results):
            return
        for arguments in _orders(candidate):
            pairs = _pairs(tuple(node.arguments.values()), tuple(arguments[key] for key in node.arguments))
            unified = None if pairs is None else self._bind_all(pairs, bound)
            if unified is not None:
                yield unified

    def _bind_all(self, pairs: Any, values: Values) -> Values | None:
        """`values` with each pair (pattern's value, graph's value) added; None if one contradicts."""
        extended = dict(values)
        for pattern_ref, graph_ref in pairs:
            if (
                extended.setdefault(pattern_ref, graph_ref) != graph_ref
                or self._pattern.types[pattern_ref] != self._graph.types[graph_ref]
            ):
                return None
        return extended


def _orders(node: Node) -> Iterator[dict[str, Any]]:
    yield node.arguments
    if node.name in COMMUTATIVE and node.arguments.keys() == {"self", "other"}:
        yield {"self": node.arguments["other"], "other": node.arguments["self"]}


def _pairs(left: Any, right: Any) -> list[tuple[Ref, Ref]] | None:
    """The pairs of values that must match for two arguments to match; None if constants differ."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return [(left.ref, right.ref)]
    if isinstance(left, tuple) and isinstance(right, tuple) and len(left) == len(right):
        nested = [_pairs(a, b) for a, b in zip(left, right, strict=True)]
        return None if None in nested else [pair for pairs in nested if pairs is not None for pair in pairs]
    return [] if type(left) is type(right) and left == right else None
