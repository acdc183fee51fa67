"""The lane of an instruction: the one that it names, or the default of its op."""

from __future__ import annotations

from collections.abc import Iterable

from ..program.ops import COLLECTIVES
from ..program.records import Function, Instruction

COMPUTE = "compute"
"""The lane of all that names none and does not start communication. What a caller sees is ready on it."""
COMM = "comm"
"""The lane of collectives and receives that name none."""

_STARTS = frozenset((*COLLECTIVES, "comm.receive_start"))


def lane_of(instruction: Instruction) -> str:
    """The lane that runs an instruction; a call has none, its callee's instructions have."""
    return instruction.lane or (COMM if instruction.op in _STARTS else COMPUTE)


def named_lanes(functions: Iterable[Function]) -> tuple[str, ...]:
    """The lanes that instructions name, sorted; empty where all have those of their ops."""
    return tuple(sorted({step.lane for function in functions for step in function.code if step.lane}))
