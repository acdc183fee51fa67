"""Terms of a gradient inside a larger sum: autograd adds the terms of one value's gradient one by one.

Before                                      After (%p and %q, whose sum is %g)
  %1 = add %r, %p                             %2 = add %r, %g
  %2 = add %1, %q
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ....ir.bindings import Operation, Type, Value
from ....ir.operations import read
from .function_dataflow import FunctionDataflow


@dataclass(frozen=True)
class Sum:
    """Terms that are added to one value, perhaps with other terms in between, and used for nothing else."""

    terms: tuple[Value, ...]
    adds: tuple[Operation, ...]
    """The additions that the terms go through, in order; the last one is the whole sum. Empty for a single term."""

    @property
    def type(self) -> Type:
        """The type of the terms and of their sum."""
        return self.terms[0].type

    def replace(self, graph: FunctionDataflow, value: Value) -> None:
        """Replace the terms by `value`, which is their sum."""
        if not self.adds:
            graph.exchange(self.terms[0], value)
            return
        replaced_terms = set(self.terms)
        for add in self.adds[:-1]:
            remaining = [v for v in add.operands if v not in replaced_terms]
            if len(remaining) == 2:
                continue
            if remaining:
                graph.exchange(add.results[0], remaining[0])
            else:
                replaced_terms.add(add.results[0])
            _set_operands(add, self.terms[0], self.terms[0])
        last = self.adds[-1]
        remaining = [v for v in last.operands if v not in replaced_terms]
        if remaining:
            _set_operands(last, remaining[0], value)
        else:
            graph.exchange(last.results[0], value)
            _set_operands(last, self.terms[0], self.terms[0])


def find_sum(terms: Sequence[Value]) -> Sum | None:
    """The sum that the terms are added to; None if one of them has another use."""
    if len(terms) == 1:
        return Sum((terms[0],), ())
    paths = [_path(term) for term in terms]
    shared = [v for v in paths[0] if all(v in path for path in paths[1:])]
    if not shared:
        return None
    passed = {v for path in paths for v in path[: path.index(shared[0]) + 1]}
    adds = _in_order(shared[0], passed)
    added = [v for add in adds for v in add.operands]
    if any(added.count(term) != list(terms).count(term) for term in terms):
        return None
    return Sum(tuple(dict.fromkeys(terms)), tuple(adds))


def _path(term: Value) -> list[Value]:
    """The sums that a value goes into and nowhere else, inner ones first."""
    path: list[Value] = []
    value = term
    while True:
        users = {use.owner.results[0]: use.owner for use in value.uses if len(use.owner.results) == 1}
        if len(users) != 1 or len(list(value.uses)) > 2:
            return path
        [(result, user)] = users.items()
        if not _is_plain_sum(user):
            return path
        path.append(result)
        value = result


def _is_plain_sum(op: Operation) -> bool:
    call = read(op)
    return (
        call is not None
        and call.name == "aten.add.Tensor"
        and call.kwargs.get("alpha", 1) == 1
        and all(v.type == op.results[0].type for v in op.operands)
    )


def _in_order(value: Value, passed: set[Value]) -> list[Operation]:
    """The additions among `passed` that `value` is made by, itself last."""
    inner = [op for v in dict.fromkeys(value.owner.operands) if v in passed for op in _in_order(v, passed)]
    return [*inner, value.owner]


def _set_operands(add: Operation, left: Value, right: Value) -> None:
    add.operands[0] = left
    add.operands[1] = right
