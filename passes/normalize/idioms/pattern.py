"""Find a small graph inside a large one, by dataflow.

A pattern's values that no pattern node makes are free: they take any value of their type. Operations match where
names, constants and result types are equal; the operands of sums and products match in either order. Two nodes of a
pattern may match one node, since equal computations may have been merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .dataflow import Dataflow, Node, Ref, Tensor

COMMUTATIVE = frozenset({"aten.add.Tensor", "aten.mul.Tensor"})
"""Operations whose arguments `self` and `other` may be swapped (a sum only where `alpha` is left out)."""

Values = dict[Ref, Ref]
"""For a value of the pattern the value of the graph that it is."""


@dataclass(frozen=True)
class Match:
    """Where a pattern was found."""

    values: Values
    nodes: tuple[Node, ...]
    """The nodes of the graph, in the order in which they were matched."""


def matches(pattern: Dataflow, nodes: Sequence[Node], graph: Dataflow, bound: Mapping[Ref, Ref]) -> Iterator[Match]:
    """Every way in which `nodes` of `pattern` are found in `graph`, given what some of their values are."""
    yield from _Search(pattern, graph).extend(dict(bound), list(nodes), ())


class _Search:
    def __init__(self, pattern: Dataflow, graph: Dataflow) -> None:
        self._pattern = pattern
        self._graph = graph

    def extend(self, values: Values, remaining: list[Node], found: tuple[Node, ...]) -> Iterator[Match]:
        """Match the remaining nodes, the one with the fewest candidates first."""
        if not remaining:
            yield Match(values, found)
            return
        node = min(remaining, key=lambda n: self._effort(n, values))
        rest = [n for n in remaining if n is not node]
        for candidate in self._candidates(node, values):
            for more in self._unify(node, candidate, values):
                yield from self.extend(more, rest, (*found, candidate))

    def _effort(self, node: Node, values: Values) -> int:
        """How many candidates a node has, at most; nodes that touch nothing known come last."""
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
        """The values with those that follow from `candidate` being `node`, for each order of its operands."""
        if node.name != candidate.name or node.arguments.keys() != candidate.arguments.keys():
            return
        bound = self._bind_all(zip(node.results, candidate.results, strict=False), values)
        if bound is None or len(node.results) != len(candidate.results):
            return
        for arguments in _orders(candidate):
            pairs = _pairs(tuple(node.arguments.values()), tuple(arguments[key] for key in node.arguments))
            more = None if pairs is None else self._bind_all(pairs, bound)
            if more is not None:
                yield more

    def _bind_all(self, pairs: Any, values: Values) -> Values | None:
        """`values` with each pair (pattern's value, graph's value) added; None where one contradicts."""
        extended = dict(values)
        for ours, theirs in pairs:
            if extended.setdefault(ours, theirs) != theirs or self._pattern.types[ours] != self._graph.types[theirs]:
                return None
        return extended


def _orders(node: Node) -> Iterator[dict[str, Any]]:
    yield node.arguments
    if node.name in COMMUTATIVE and node.arguments.keys() == {"self", "other"}:
        yield {"self": node.arguments["other"], "other": node.arguments["self"]}


def _pairs(ours: Any, theirs: Any) -> list[tuple[Ref, Ref]] | None:
    """The values that must be equal for two arguments to be; None where constants differ."""
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return [(ours.ref, theirs.ref)]
    if isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs):
        found = [_pairs(a, b) for a, b in zip(ours, theirs, strict=True)]
        return None if None in found else [pair for pairs in found if pairs is not None for pair in pairs]
    return [] if type(ours) is type(theirs) and ours == theirs else None
