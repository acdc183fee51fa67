"""Where operations stood before communication moved: an attribute, from `hoist-collectives` to `cap-memory`."""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.attributes import from_attribute, to_attribute
from ...ir.bindings import Operation
from ...ir.module import Module, operations

_POSITION = "position"


def note_positions(ops: Sequence[Operation]) -> None:
    """Note the order of a function's operations."""
    for number, op in enumerate(ops):
        op.attributes[_POSITION] = to_attribute(number)


def position_of(op: Operation) -> int | None:
    """The number of an operation in that order; None in a function in which nothing moved."""
    return int(from_attribute(op.attributes[_POSITION])) if _POSITION in op.attributes else None


def copy_position(source: Operation, target: Operation) -> None:
    """Let one operation stand where another one stood."""
    if _POSITION in source.attributes:
        target.attributes[_POSITION] = source.attributes[_POSITION]


def forget_positions(module: Module) -> None:
    """Remove what was noted."""
    for function in module.functions().values():
        for op in operations(function):
            if _POSITION in op.attributes:
                del op.attributes[_POSITION]
