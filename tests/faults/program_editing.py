"""What faults of programs are made with: one function's instructions, and edits that keep the rest as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from stretto.runtime.program.arguments import Slot, fill_in
from stretto.runtime.program.program import Program
from stretto.runtime.program.records import Function, Instruction

from ..runtime.tiny_programs import without_types


@dataclass(frozen=True)
class Place:
    """A function of a program, and the dice."""

    program: Program
    name: str
    random: Random

    @property
    def function(self) -> Function:
        return self.program.functions[self.name]

    @property
    def code(self) -> tuple[Instruction, ...]:
        return self.function.code

    def indices(self, matches: Callable[[Instruction], bool]) -> list[int]:
        """The instructions that are wanted, in a random order."""
        indices = [i for i, instruction in enumerate(self.code) if matches(instruction)]
        self.random.shuffle(indices)
        return indices

    def with_code(self, code: Sequence[Instruction], *, slots: int = 0) -> Program:
        """The program with other instructions here, and so many more slots; the backward begins where it did."""
        function = self.function
        begins = function.backward_at
        if begins is not None and begins < len(function.code):
            first = function.code[begins]
            begins = next((i for i, instruction in enumerate(code) if instruction is first), begins)
        return self.with_function(replace(function, code=tuple(code), slots=function.slots + slots, backward_at=begins))

    def with_function(self, function: Function) -> Program:
        """The program with another function of this name."""
        edited = replace(self.program, functions={**self.program.functions, self.name: function}, ir="")
        return without_types(edited)

    def replaced(self, index: int, *instead: Instruction, slots: int = 0) -> Program:
        """The program with other instructions in place of one."""
        return self.with_code([*self.code[:index], *instead, *self.code[index + 1 :]], slots=slots)

    def moved(self, index: int, to: int) -> Program:
        """The program with one instruction at another place; `to` counts without it."""
        rest = [*self.code[:index], *self.code[index + 1 :]]
        return self.with_code([*rest[:to], self.code[index], *rest[to:]])

    def wait_of(self, start: int) -> int | None:
        """The instruction that waits for what one starts; None where another function does."""
        [future] = self.code[start].writes() or (None,)
        return next((i for i, c in enumerate(self.code) if c.op == "comm.wait" and c.reads() == (future,)), None)

    def holds_the_same(self, slot: int, other: int) -> bool:
        """Whether two slots are one, or take the same value from one call."""
        return self._origin(slot) == self._origin(other)

    def _origin(self, slot: int) -> tuple[int, int]:
        """The call that makes a slot's value and what it is there, else -1 and the slot itself."""
        writers = [(i, c) for i, c in enumerate(self.code) if c.op == "call" and slot in c.out]
        if not writers:
            return -1, slot
        index, call = writers[0]
        return index, self.program.functions[str(call.args[0])].results[call.out.index(slot)]

    def freed_at(self, slot: int, after: int) -> int | None:
        """The first instruction from `after` on that frees a slot."""
        return next((i for i, c in enumerate(self.code) if i >= after and slot in c.free), None)


def renamed(instruction: Instruction, old: int, new: int) -> Instruction:
    """An instruction that reads one slot in place of another."""

    def named(slot: int) -> Slot:
        return Slot(new if slot == old else slot)

    return replace(
        instruction,
        args=tuple(fill_in(a, named) for a in instruction.args),
        kwargs={key: fill_in(a, named) for key, a in instruction.kwargs.items()},
    )


def freeing(instruction: Instruction, *slots: int) -> Instruction:
    """An instruction that frees these slots too."""
    return replace(instruction, free=tuple(sorted({*instruction.free, *slots})))


def keeping(instruction: Instruction, *slots: int) -> Instruction:
    """An instruction that does not free these slots."""
    return replace(instruction, free=tuple(slot for slot in instruction.free if slot not in slots))


def is_start(instruction: Instruction) -> bool:
    """Whether an instruction starts a collective."""
    return instruction.op.startswith("comm.") and instruction.op.endswith("_start")


def is_wait(instruction: Instruction) -> bool:
    """Whether an instruction waits for a collective."""
    return instruction.op == "comm.wait"
