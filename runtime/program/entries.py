"""Where a rank begins: the function that it runs, what that takes and what it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from .ops import RANK_OPS
from .records import Function, Input, Instruction, Output, Pipeline

MAIN = "main"
"""Where all ranks begin in a program whose ranks take no turns."""
MICROBATCH = "microbatch"
"""The axis of time: `rank.*` instructions in what is called for one microbatch may name it."""
TURN = "turn"
"""Which of several microbatches that its function was called for an instruction is about."""

Record = TypeVar("Record", Input, Output)


@dataclass(frozen=True)
class Entry:
    """The function `name`; its inputs and outputs are in the program's order, their slots are those of the function."""

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    stage: int | None = None
    """Its coordinate on the pipeline's axis; None in a program whose ranks take no turns."""

    @cached_property
    def early(self) -> tuple[Input, ...]:
        """What must be there when the forward begins: in a pipeline the tangent, too."""
        return tuple(each for each in self.inputs if self.stage is not None or each.kind != "tangent")

    @cached_property
    def results(self) -> tuple[Output, ...]:
        """What the forward gives."""
        return tuple(each for each in self.outputs if each.kind != "gradient")

    @cached_property
    def gradients(self) -> tuple[Output, ...]:
        """What the backward gives, or a pipeline's forward holds."""
        return tuple(each for each in self.outputs if each.kind == "gradient")


def entries(
    inputs: Sequence[Input], outputs: Sequence[Output], functions: Mapping[str, Function], pipeline: Pipeline | None
) -> tuple[Entry, ...]:
    """The entry of all ranks, or one for each coordinate on the axis of the pipeline."""
    if pipeline is None:
        return (Entry(MAIN, tuple(inputs), tuple(outputs)),)
    found = []
    for stage, name in enumerate(pipeline.entries):
        function = functions[name]
        takes = _placed(at_stage(inputs, stage), function.arguments)
        found.append(Entry(name, takes, _placed(at_stage(outputs, stage), function.results), stage))
    return tuple(found)


def at_stage(records: Sequence[Record], stage: int | None) -> list[Record]:
    """Those that the ranks at a coordinate take, or give."""
    return [each for each in records if stage is None or each.stages is None or stage in each.stages]


def reachable(entry: str, functions: Mapping[str, Function]) -> list[str]:
    """The functions that an entry calls, and what these call; in the order of the program."""
    found: set[str] = set()
    left = [entry]
    while left:
        callees = {str(each.args[0]) for each in functions[left.pop()].code if each.op == "call"}
        left += sorted(callees - found)
        found |= callees
    return [name for name in functions if name in found]


def is_timed(each: Instruction) -> bool:
    """Whether a `rank.*` instruction asks which microbatch it is done for."""
    axes = each.kwargs.get("axes")
    names = [axis for text in axes for axis in str(text).split(",")] if isinstance(axes, list | tuple) else []
    return MICROBATCH in names and each.op in RANK_OPS


def timed_functions(functions: Mapping[str, Function]) -> frozenset[str]:
    """Those that must be told the microbatch: they ask for it, or call one that does without saying it."""
    found = {name for name, each in functions.items() if any(map(is_timed, each.code))}
    grown = True
    while grown:
        more = {name for name, each in functions.items() if any(_passes_on(call, found) for call in each.code)}
        grown = not more <= found
        found |= more
    return frozenset(found)


def turns_of(functions: Mapping[str, Function]) -> dict[str, int]:
    """How many microbatches at once each function is called for, where they are several."""
    found: dict[str, int] = {}
    for function in functions.values():
        for each in function.code:
            said = each.kwargs.get(MICROBATCH)
            if each.op == "call" and isinstance(said, list | tuple):
                found[str(each.args[0])] = len(said)
    return found


def _passes_on(each: Instruction, timed: set[str]) -> bool:
    return each.op == "call" and each.args[0] in timed and MICROBATCH not in each.kwargs


def _placed(records: Sequence[Record], slots: Sequence[int]) -> tuple[Record, ...]:
    return tuple(replace(each, slot=slot) for each, slot in zip(records, slots, strict=True))
