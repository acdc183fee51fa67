"""A backward found in a function: what goes away, and the sums that its gradients go into."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ....ir.bindings import Location
from .dataflow import Node, Ref
from .derive import Derived
from .function_dataflow import FunctionDataflow
from .sums import Sum, find_sum


@dataclass(frozen=True)
class Backward:
    """One occurrence of a derived backward that one operation can replace."""

    nodes: tuple[Node, ...]
    values: Mapping[Ref, Ref]
    """For a value of the pattern the function's value."""
    grad: Ref
    """The gradient that comes in."""
    sums: Mapping[int, Sum]
    """For each trained input's place the sum that its gradient goes into."""
    slot: int
    """Where the operation goes."""
    location: Location


def backwards(
    graph: FunctionDataflow,
    derived: Derived,
    trained: Sequence[int],
    *,
    known: Mapping[Ref, Ref],
    own: Sequence[Node],
    kept: Collection[Ref],
    inputs: Sequence[Ref],
) -> Iterator[Backward]:
    """The occurrences of `derived` in a function, given what some of its values are.

    `own` are the forward's nodes that go away with it, `kept` the values of these that stay. `inputs` are the values
    that the operation needs beside the incoming gradient. Occurrences whose inner values have other uses are left out.
    """
    for match in derived.matches(graph, known):
        terms = [[match.values[term] for term in gradient] for gradient in derived.gradients]
        flat = [ref for refs in terms for ref in refs]
        if graph.outside_user((*own, *match.nodes), {*kept, *flat}) is not None:
            continue
        grad = match.values[derived.grad]
        slot = graph.slot(match.nodes, (grad, *inputs), flat)
        sums = {place: find_sum([graph.current(r) for r in refs]) for place, refs in zip(trained, terms, strict=True)}
        found = {place: total for place, total in sums.items() if total is not None}
        if slot is not None and len(found) == len(sums):
            location = graph.current(flat[-1]).owner.location
            yield Backward(match.nodes, match.values, grad, found, slot, location)
