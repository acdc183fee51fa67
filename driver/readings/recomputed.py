"""What a program keeps from its forward to its backward although the text of its plan says to compute it again."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from ...runtime.program.arguments import Slot
from ...runtime.program.program import Program
from ...runtime.program.records import Function, Instruction
from .plan_text import PlanText, covers

_CAST = "aten._to_copy"


def kept_against_plan(program: Program, plan: PlanText) -> Iterator[tuple[str, str]]:
    """A name and a note for each value that a module that is computed again makes, and that only its backward reads.

    Of pipelines it says nothing: their tasks are in no one order.
    """
    if program.pipeline is not None or program.functions["main"].backward_at is None:
        return
    main = program.functions["main"]
    walk = _Walk(program, main)
    places = {location.module for location in program.locations}
    containers = {found[1] for place in places if (found := re.match(r"([^*\d]*)\.(?:\d+|\*)\.", place))}
    for patterns, collectives_again in plan.recomputed:
        for slot, readers in walk.crossing().items():
            made_in = walk.maker(slot, collectives_again=collectives_again)
            module = None if made_in is None else _module(made_in, patterns, containers)
            if module is not None and all(_module(r, patterns, containers) == module for r in readers):
                yield module, "the program keeps what it makes for its backward; the plan says recompute"


@dataclass
class _Walk:
    program: Program
    main: Function

    def crossing(self) -> dict[int, list[str]]:
        """By slot that the forward writes and the backward reads: the modules whose operations read it."""
        backward_at = self.main.backward_at
        made = {slot for step in self.main.code[:backward_at] for slot in step.writes()}
        readers: dict[int, list[str]] = {}
        for step in self.main.code[backward_at:]:
            for slot in step.reads():
                if slot in made:
                    readers.setdefault(slot, []).extend(self._modules(step, slot))
        return readers

    def _modules(self, step: Instruction, slot: int) -> Iterator[str]:
        """The modules of the operations of one step that read a slot."""
        if step.op != "call":
            yield self._module_of(step)
            return
        name, operands = step.args
        function = self.program.functions[str(name)]
        assert isinstance(operands, Sequence)
        for argument, operand in zip(function.arguments, operands, strict=True):
            if operand == Slot(slot):
                yield from (self._inside(each, step) for each in function.code if argument in each.reads())

    def maker(self, slot: int, *, collectives_again: bool) -> str | None:
        """The module of the torch op that makes a slot of main, views taken back; None for any other maker.

        Where collectives run again, also that of a collective on what the forward computes.
        """
        slot = _viewed(self.main, slot)
        step = _made(self.main, slot)
        if step is None:
            return None
        if step.op != "call":
            return self._module_of(step) if _counts(self.main, step, collectives_again) else None
        function = self.program.functions[str(step.args[0])]
        made = _made(function, _viewed(function, function.results[step.out.index(slot)]))
        return self._inside(made, step) if made is not None and _counts(function, made, collectives_again) else None

    def _module_of(self, step: Instruction) -> str:
        return "" if step.loc is None else self.program.locations[step.loc].module

    def _inside(self, step: Instruction, call: Instruction) -> str:
        """The module of an operation of a layer's function, in the layer that a call computes."""
        number = re.search(r"\d+$", self._module_of(call))
        return self._module_of(step).replace("*", number[0], 1) if number else self._module_of(step)


def _counts(function: Function, step: Instruction, collectives_again: bool) -> bool:
    """Whether a result of this operation is to be computed again."""
    return step.op.startswith("aten.") or (collectives_again and _moves_computed(function, step))


def _moves_computed(function: Function, step: Instruction) -> bool:
    """Whether it awaits a collective on a value that this function computes, and not on an argument or its cast."""
    at: Instruction | None = step
    while at is not None and (at.op == "comm.wait" or at.op.startswith(("comm.", _CAST))):
        at = _made(function, _viewed(function, at.reads()[0]))
    return step.op == "comm.wait" and at is not None


def _made(function: Function, slot: int) -> Instruction | None:
    return next((each for each in function.code if slot in each.writes()), None)


def _viewed(function: Function, slot: int) -> int:
    views = dict(function.views)
    while slot in views:
        slot = views[slot]
    return slot


def _module(path: str, patterns: Sequence[str], containers: Container[str]) -> str | None:
    """The outermost module around `path` that a glob covers, or the layer where that holds several in a container."""
    parts = path.split(".") if path else []
    for count in range(1, len(parts) + 1):
        if any(covers(pattern, ".".join(parts[:count])) for pattern in patterns):
            numbers = [index for index, part in enumerate(parts) if part.isdigit()]
            inside = [i + 1 for i in numbers[:1] if i >= count and ".".join(parts[:i]) in containers]
            return ".".join(parts[: inside[0] if inside else count])
    return None
