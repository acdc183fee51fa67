"""Which collective is which: not by its place in a list, nor by its shape, but by what its operand is computed from."""

from __future__ import annotations

from hashlib import blake2b

from ..program.arguments import fill_in
from ..program.program import Program
from ..program.records import Instruction
from .values import Path

_BYTES = 16


class Origins:
    """Of the instructions of one program. Two programs in which one is computed alike give it the same identity.

    Which slots hold values, and where else instructions stand in a list, makes no difference.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._functions: dict[str, list[str]] = {}

    def of(self, path: Path) -> tuple[str, ...]:
        """The identity of an instruction: of each call that leads to it, then its own."""
        return tuple(self._instructions(name)[index] for name, index in path)

    def _instructions(self, name: str) -> list[str]:
        if name not in self._functions:
            function = self._program.functions[name]
            entry = next((each for each in self._program.entries if each.name == name), None)
            inputs = {each.slot: f"{each.kind} {each.name}" for each in entry.inputs} if entry else {}
            values = {slot: inputs.get(slot, f"argument {at}") for at, slot in enumerate(function.arguments)}
            self._functions[name] = [_made(each, values) for each in function.code]
        return self._functions[name]


def _made(each: Instruction, values: dict[int, str]) -> str:
    """The identity of an instruction; of its results is noted in `values` what they are."""
    args = [fill_in(value, values.__getitem__) for value in each.args]
    kwargs = {key: fill_in(value, values.__getitem__) for key, value in sorted(each.kwargs.items())}
    identity = blake2b(repr((each.op, args, kwargs)).encode(), digest_size=_BYTES).hexdigest()
    for at, slot in enumerate(each.out):
        if slot is not None:
            values[slot] = f"{identity}[{at}]"
    return identity
