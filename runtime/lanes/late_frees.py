"""Tensors that a program keeps longer than an instruction uses them: right, but more memory than it needs."""

from __future__ import annotations

from ..program.program import Program
from ..program.records import Function
from .names import named_lanes


def late_frees(program: Program) -> list[str]:
    """A line for each function that frees a tensor behind the last instruction that uses it, or never.

    A function with named lanes frees a tensor where all lanes are behind its uses, and is left out.
    """
    lines = ((name, _late(function)) for name, function in program.functions.items() if not named_lanes([function]))
    return [f"{name} {late}" for name, late in lines if late]


def _late(function: Function) -> str:
    last: dict[int, int] = {}
    for index, step in enumerate(function.code):
        last.update(dict.fromkeys((*step.reads(), *step.writes()), index))
    freed = {slot: index for index, step in enumerate(function.code) for slot in step.free}
    for slot, index in last.items():
        at = freed.get(slot)
        if slot not in function.results and (at is None or at > index):
            until = "its end" if at is None else f"instruction {at} ({function.code[at].op})"
            op = function.code[index].op
            return f"keeps the tensor in slot {slot} until {until}; instruction {index} ({op}) is the last to use it"
    return ""
