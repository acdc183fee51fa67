"""Validation of one instruction of `program.json` or `reference.json`: its slots, and the call of a torch op."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from ..errors import ProgramError
from ..reading.json_fields import Malformed
from .ops import Op
from .records import Instruction

_PROBABILITIES = frozenset({"p", "dropout_p", "dropout"})
_TRAINING = frozenset({"train", "training"})
_PLACES = frozenset({"device", "generator", "layout", "pin_memory"})
"""Arguments that say where a tensor is stored or who draws it: the runtime decides on these."""


def require(holds: bool, message: str) -> None:
    """Raise Malformed unless the condition holds."""
    if not holds:
        raise Malformed(message)


@dataclass(frozen=True)
class _Signature:
    """What the calls of an op are checked against; torch makes new objects each time that it is asked."""

    positional: tuple[str, ...]
    defaults: dict[str, object]
    """By argument: its default value; None where it has none."""
    required: tuple[str, ...]
    may_draw: bool


@lru_cache(maxsize=4096)
def _signature(op: torch._ops.OpOverload) -> _Signature:
    arguments = op._schema.arguments
    return _Signature(
        tuple(argument.name for argument in arguments if not argument.kwarg_only),
        {argument.name: argument.default_value for argument in arguments},
        tuple(argument.name for argument in arguments if not argument.has_default_value()),
        torch.Tag.nondeterministic_seeded in op.tags,
    )


def check_slots(instruction: Instruction, live: set[int], count: int, path: str) -> None:
    """Raise Malformed where a slot is not set, does not exist or is written twice; update those that are `live`."""
    for slot in instruction.reads():
        require(slot in live, f"{path} ({instruction.op}): slot {slot} is read, but is not set")
    writes = instruction.writes()
    require(all(0 <= slot < count for slot in writes), f"{path}.out: no such slot")
    require(len(set(writes)) == len(writes), f"{path}.out: a slot is listed twice")
    live.update(writes)
    require(live.issuperset(instruction.free), f"{path}.free: a slot is freed that is not set")
    live.difference_update(instruction.free)


def check_call(op: Op, instruction: Instruction, path: str) -> None:
    """Raise Malformed where arguments or results do not fit the op, ProgramError E0305 where it would draw."""
    signature, given = _signature(op.overload), instruction.args
    most = len(signature.positional)
    require(len(given) <= most, f"{path}.args: {op.name} takes at most {most} arguments, found {len(given)}")
    bound = dict(zip(signature.positional, given, strict=False))
    for key, value in instruction.kwargs.items():
        require(key in signature.defaults, f"{path}.kwargs: {op.name} has no argument '{key}'")
        require(key not in bound, f"{path}.kwargs: {op.name} is given '{key}' twice")
        require(key not in _PLACES, f"{path}.kwargs: '{key}' is not for a program to say")
        bound[key] = value
    for name in signature.required:
        is_given = name in bound or (op.is_factory and name in _PLACES)
        require(is_given, f"{path}.args: {op.name} lacks its argument '{name}'")
    require(op.gives_list or len(instruction.out) <= 1, f"{path}.out: {op.name} returns one value")
    if signature.may_draw and not _is_switched_off({**signature.defaults, **bound}):
        raise ProgramError("E0305", f"{path}: '{op.name}' would draw from torch's generator, which no program may")


def _is_switched_off(bound: dict[str, object]) -> bool:
    """Whether an op that can draw does not: a probability of 0, or not in training."""
    return any(
        (name in _PROBABILITIES and type(value) in (int, float) and value == 0)
        or (name in _TRAINING and value is False)
        for name, value in bound.items()
    )
