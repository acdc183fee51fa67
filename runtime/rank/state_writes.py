"""Writes into states: ops whose result is written into a state's memory (`into`), and those past its end.

An op is written in place by torch's in-place form of it, or by a copy. What was not is copied when a step ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..errors import RunError
from ..program.arguments import Slot
from ..program.ops import torch_op
from ..program.program import Program
from ..program.records import Function, Input, Instruction

_PAST_THE_END = re.compile(
    r"index (?P<index>-?\d+) is out of bounds for dimension (?P<dim>\d+) with size (?P<size>\d+)"
)
"""Torch's message for an index that no element has."""
Steps = Sequence[tuple[str, int]]
"""Functions and positions of instructions: calls, outermost first, and last an instruction."""


def writes_in_place(op: str) -> bool:
    """Whether torch has the op in a form that writes its result into its first operand."""
    return _in_place(op) is not None


def writing_into(op: str) -> Callable[..., Tensor]:
    """The function that computes an op and writes its result into a tensor of its shape, the first argument."""
    in_place: Callable[..., Any] | None = _in_place(op)
    call = torch_op(op).call

    def write(target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        is_operand = bool(args) and args[0] is target
        if in_place is not None and is_operand:
            in_place(*args, **kwargs)
            return target
        target.copy_(call(*args, **kwargs))
        return target

    return write


def _in_place(op: str) -> Callable[..., Any] | None:
    namespace, name, overload = op.split(".")
    functional = torch_op(op).overload._schema
    packet = getattr(getattr(torch.ops, namespace), f"{name}_", None)
    found = getattr(packet, overload, None)
    if not isinstance(found, torch._ops.OpOverload):
        return None
    first, *others = found._schema.arguments
    writes_first = first.alias_info is not None and first.alias_info.is_write
    alone = not any(each.alias_info is not None and each.alias_info.is_write for each in others)
    alike = [each.name for each in found._schema.arguments] == [each.name for each in functional.arguments]
    return found if writes_first and alone and alike else None


def settled(parts: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    """The new values of states, whose memory is `parts`, copied where they lie in the memory of another state.

    Two states may have exchanged their values: each is then written to while the other one is still to be read.
    """
    memories = {part.untyped_storage().data_ptr() for part in parts}
    return [
        value.clone() if value.untyped_storage().data_ptr() in memories and not is_same(value, part) else value
        for part, value in zip(parts, values, strict=True)
    ]


def is_same(value: Tensor, part: Tensor) -> bool:
    """Whether a new value was written in place."""
    return value.data_ptr() == part.data_ptr() and value.stride() == part.stride()


def past_the_end(program: Program, steps: Steps, failure: RunError, reason: str) -> RunError | None:
    """The error of a write past the end of a state, such as a decode step on a cache that is full.

    `failure` is that of the instruction; None where it failed of something else.
    """
    found = _PAST_THE_END.search(reason)
    state = written_state(program, steps) if found else None
    if found is None or state is None:
        return None
    return RunError(
        "E0339",
        f'position {found["index"]} is past the end of {state.kind} "{state.name}", which has {found["size"]} in dim '
        f"{found['dim']}: {failure.message}",
        span=failure.span,
        notes=failure.notes,
        expected=f"positions from 0 to {int(found['size']) - 1}",
        help="begin a new sequence at position 0, or give the model a longer cache",
    )


def written_state(program: Program, steps: Steps) -> Input | None:
    """The state or buffer whose value is the first operand of an instruction, through the calls that led to it."""
    function, index = steps[-1]
    slot = _first_operand(program.functions[function].code[index])
    for (caller, position), (callee, _) in reversed([*pairwise(steps)]):
        arguments = program.functions[callee].arguments
        slot = _before_writes(program.functions[callee], slot)
        if slot not in arguments:
            return None
        operands = program.functions[caller].code[position].args[1]
        passed = operands[arguments.index(slot)] if isinstance(operands, Sequence) else None
        slot = passed.index if isinstance(passed, Slot) else None
    entry = steps[0][0]
    slot = _before_writes(program.functions[entry], slot)
    held = (each for each in program.inputs if each.slot == slot and each.kind in ("state", "buffer"))
    return next(held, None)


def _first_operand(instruction: Instruction) -> int | None:
    first = instruction.args[0] if instruction.args else None
    return first.index if isinstance(first, Slot) else None


def _before_writes(function: Function, slot: int | None) -> int | None:
    """The slot of the value that writes in place began with."""
    into = {each.writes()[0]: each.into for each in function.code if each.into is not None}
    while slot in into:
        slot = into[slot]
    return slot
