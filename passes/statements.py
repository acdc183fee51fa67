"""Which statements of a plan had no effect, by what the passes report of them.

A pass names a statement by a key: its place in the plan, or, where the pass sees only what an earlier one left on the
module, what the statement is about. A statement that no pass reports on is not judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..dsl.parser import Statement
from ..dsl.plan import Plan
from ..dsl.precision import Precision
from ..dsl.shard import ShardActivations
from .base import Remark, RemarkKind


def key_of(index: int) -> str:
    """The key of the plan's statement at a place in `plan.statements`."""
    return f"statement {index}"


def activations_key(axis: str) -> str:
    """The key of the one statement that shards activations over an axis."""
    return f"activations over {axis}"


PRECISION_KEY = "precision"
"""The key of the statement about precision."""


def void_statements(plan: Plan, effects: Sequence[tuple[str, Mapping[str, str]]]) -> list[Remark]:
    """A warning for every statement on which passes report, and none of them an effect.

    `effects` holds, for each pass that ran, its name and `Report.effects`.
    """
    found = []
    for index, statement in enumerate(plan.statements):
        keys = _keys(index, statement)
        said = [(name, each[key]) for name, each in effects for key in keys if key in each]
        if said and all(why for _, why in said):
            name, why = said[-1]
            what = "this statement" if statement.span else f'"{statement}"'
            message = f"{what} has no effect: {why}"
            found.append(Remark(name, RemarkKind.WARNING, message, span=statement.span))
    return found


def _keys(index: int, statement: Statement) -> tuple[str, ...]:
    if isinstance(statement, ShardActivations):
        return (key_of(index), *(activations_key(axis) for axis in statement.axes))
    if isinstance(statement, Precision):
        return (key_of(index), PRECISION_KEY)
    return (key_of(index),)
