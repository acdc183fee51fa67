"""A backward matched in a function: the nodes it replaces, and the sums that its gradients go into."""

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
    """From values of the pattern to values of the function."""
    grad: Ref
    """The incoming gradient."""
    sums: Mapping[int, Sum]
    """By index of a trained input: the sum that its gradient goes into."""
    slot: int
    """The index of the node before which the replacement goes."""
    location: Location


def backwards(
    graph: FunctionDataflow,
    derived: Derived,
    trained: Sequence[int],
    *,
    bound: Mapping[Ref, Ref],
    forward_nodes: Sequence[Node],
    kept: Collection[Ref],
    inputs: Sequence[Ref],
) -> Iterator[Backward]:
    """The occurrences of `derived` in a function, where some of its values are `bound`.

    `forward_nodes` are replaced with it, except for their values in `kept`. `inputs` are the values that the new
    operation needs beside the incoming gradient. Occurrences whose inner values have other uses are left out.
    """
    for match in derived.matches(graph, bound):
        terms = [[match.values[term] for term in gradient] for gradient in derived.gradients]
        flat = [ref for refs in terms for ref in refs]
        if graph.outside_user((*forward_nodes, *match.nodes), {*kept, *flat}) is not None:
            continue
        grad = match.values[derived.grad]
        slot = graph.slot(match.nodes, (grad, *inputs), flat)
        sums = {index: find_sum([graph.current(r) for r in refs]) for index, refs in zip(trained, terms, strict=True)}
        complete = {index: total for index, total in sums.items() if total is not None}
        if slot is not None and len(complete) == len(sums):
            location = graph.current(flat[-1]).owner.location
            yield Backward(match.nodes, match.values, grad, complete, slot, location)
