"""Slot order: each slot is set before it is read, and freed after its last use. Needs no shapes and no valid ops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..program.entries import MAIN
from ..program.program import Program
from ..program.records import Function, Instruction
from .values import Path, Refuted

WAIT = "comm.wait"


def check_slots(program: Program) -> None:
    """Raise Refuted for the first slot that is read, freed or returned while it is not set."""
    main = MAIN if program.pipeline is None else None
    if main is not None and main not in program.functions:
        return
    for name, function in program.functions.items():
        _Slots(name, function, _late(program) if name == main else {}, is_main=name == main).check(program)


def _late(program: Program) -> dict[int, int]:
    """By slot of a tangent, an argument of main that is set only when the backward begins: the index of that begin."""
    begins = program.functions[MAIN].backward_at
    slots = [argument.slot for argument in program.inputs if argument.kind == "tangent"]
    return dict.fromkeys(slots, begins) if begins is not None else {}


class _Slots:
    """One function's slots while its instructions are walked."""

    def __init__(self, name: str, function: Function, late: dict[int, int], *, is_main: bool) -> None:
        self.name = name
        self.is_main = is_main
        self.code = function.code
        self.results = () if is_main else function.results
        self.late = late
        self.live = set(function.arguments) - late.keys()
        self.freed: dict[int, int] = {}

    def check(self, program: Program) -> None:
        """Walk the function. `program` has the outputs of main, which are taken at the end of forward and backward."""
        begins = program.functions[self.name].backward_at
        outputs = program.outputs if self.is_main else ()
        for index, instruction in enumerate(self.code):
            if index == begins:
                self._begin_backward()
                self._all_set([o.slot for o in outputs if o.kind != "gradient"], index - 1, "outputs")
            self._step(index, instruction)
        end = len(self.code) - 1
        if begins == len(self.code):
            self._begin_backward()
        taken = [o.slot for o in outputs if begins in (None, len(self.code)) or o.kind == "gradient"]
        self._all_set([*self.results, *taken], end, "results")

    def _begin_backward(self) -> None:
        self.live |= self.late.keys()
        self.late = {}

    def _step(self, index: int, instruction: Instruction) -> None:
        for slot in instruction.reads():
            if slot not in self.live:
                raise self._not_set(slot, index, instruction)
        self.live.update(instruction.writes())
        for slot in instruction.free:
            if slot not in self.live:
                before = self.freed.get(slot)
                where = "twice" if before is not None else "before it is set"
                raise Refuted("E0703", f"slot {slot} is freed {where}", self._at(index), self._at(before))
        self.live.difference_update(instruction.free)
        self.freed.update(dict.fromkeys(instruction.free, index))

    def _not_set(self, slot: int, index: int, instruction: Instruction) -> Refuted:
        before = self.freed.get(slot)
        if before is not None and instruction.op == WAIT == self.code[before].op:
            return Refuted("E0707", "a future is waited on twice", self._at(index), self._at(before))
        if before is not None:
            return Refuted(
                "E0702", f"slot {slot} is read after it was freed", self._at(index), self._at(before),
                help="free it with its last user",
            )  # fmt: skip
        if slot in self.late:
            return Refuted(
                "E0701", f"the tangent in slot {slot} is read in the forward, before it is set", self._at(index)
            )
        setter = next(
            (
                later_index
                for later_index, later in enumerate(self.code)
                if later_index >= index and slot in later.writes()
            ),
            None,
        )
        what = (
            "a future is waited on before its start"
            if instruction.op == WAIT
            else f"slot {slot} is read before it is set"
        )
        return Refuted("E0701", what, self._at(index), self._at(setter))

    def _all_set(self, slots: Iterable[int], last: int, what: str) -> None:
        for slot in slots:
            if slot not in self.live:
                why = "was freed" if slot in self.freed else "is never set"
                first = self.freed.get(slot, max(last, 0))
                raise Refuted(
                    "E0704", f'slot {slot}, one of the {what} of "{self.name}", {why} when they are taken',
                    self._at(first), self._at(_setter(self.code, slot)),
                )  # fmt: skip

    def _at(self, index: int | None) -> Path:
        return () if index is None else ((self.name, index),)


def _setter(code: Sequence[Instruction], slot: int) -> int | None:
    return next((index for index, instruction in enumerate(code) if slot in instruction.writes()), None)
