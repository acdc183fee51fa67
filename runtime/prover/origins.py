"""The identity of an instruction by its data flow: the expression that computes its operands, not its position."""

from __future__ import annotations

from hashlib import blake2b

from ..program.arguments import fill_in
from ..program.program import Program
from ..program.records import Instruction
from .values import Path

_BYTES = 16


class Origins:
    """Identities of the instructions of one program. Equal expressions have equal identities, in all programs.

    Slot numbers and the order of instructions make no difference.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._functions: dict[str, list[str]] = {}

    def identity(self, path: Path) -> tuple[str, ...]:
        """The identity of an instruction: that of each call on its path, then its own."""
        return tuple(self._instructions(name)[index] for name, index in path)

    def _instructions(self, name: str) -> list[str]:
        if name not in self._functions:
            function = self._program.functions[name]
            entry = next((candidate for candidate in self._program.entries if candidate.name == name), None)
            inputs = {argument.slot: f"{argument.kind} {argument.name}" for argument in entry.inputs} if entry else {}
            values = {slot: inputs.get(slot, f"argument {index}") for index, slot in enumerate(function.arguments)}
            self._functions[name] = [_identity(instruction, values) for instruction in function.code]
        return self._functions[name]


def _identity(instruction: Instruction, values: dict[int, str]) -> str:
    """The identity of an instruction. Records the identities of its results in `values`, by slot."""
    args = [fill_in(value, values.__getitem__) for value in instruction.args]
    kwargs = {key: fill_in(value, values.__getitem__) for key, value in sorted(instruction.kwargs.items())}
    identity = blake2b(repr((instruction.op, args, kwargs)).encode(), digest_size=_BYTES).hexdigest()
    for result_index, slot in enumerate(instruction.out):
        if slot is not None:
            values[slot] = f"{identity}[{result_index}]"
    return identity
