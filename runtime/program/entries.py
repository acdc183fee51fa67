"""Entry functions: where a rank begins, which inputs its entry takes and which outputs it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from .ops import RANK_OPS
from .records import Function, Input, Instruction, Output, Pipeline

MAIN = "main"
"""The entry of all ranks in a program without a pipeline."""
MICROBATCH = "microbatch"
"""The microbatch axis, which `rank.*` instructions may name; also the keyword of a call that gives its microbatch."""
MICROBATCH_INDEX = "microbatch_index"
"""The keyword of an instruction in a function called for several microbatches: the position of its own among them."""

Record = TypeVar("Record", Input, Output)


@dataclass(frozen=True)
class Entry:
    """The function `name` with its inputs and outputs in the program's order; their slots are the function's own."""

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    stage: int | None = None
    """The coordinate of its ranks on the pipeline axis; None without a pipeline."""

    @cached_property
    def forward_inputs(self) -> tuple[Input, ...]:
        """The inputs that the forward reads: all but tangents; in a pipeline the tangent, too."""
        return tuple(argument for argument in self.inputs if self.stage is not None or argument.kind != "tangent")

    @cached_property
    def forward_outputs(self) -> tuple[Output, ...]:
        """What the forward returns: outputs and new values of buffers."""
        return tuple(output for output in self.outputs if output.kind != "gradient")

    @cached_property
    def gradients(self) -> tuple[Output, ...]:
        """What the backward returns; a pipeline's forward computes them already."""
        return tuple(output for output in self.outputs if output.kind == "gradient")


def entries(
    inputs: Sequence[Input], outputs: Sequence[Output], functions: Mapping[str, Function], pipeline: Pipeline | None
) -> tuple[Entry, ...]:
    """The entry of all ranks, or in a pipeline one for each stage."""
    if pipeline is None:
        return (Entry(MAIN, tuple(inputs), tuple(outputs)),)
    by_stage = []
    for stage, name in enumerate(pipeline.entries):
        function = functions[name]
        stage_inputs = _with_slots(records_of_stage(inputs, stage), function.arguments)
        stage_outputs = _with_slots(records_of_stage(outputs, stage), function.results)
        by_stage.append(Entry(name, stage_inputs, stage_outputs, stage))
    return tuple(by_stage)


def records_of_stage(records: Sequence[Record], stage: int | None) -> list[Record]:
    """The inputs, or outputs, of the ranks of a stage (None: all)."""
    return [record for record in records if stage is None or record.stages is None or stage in record.stages]


def reachable(entry: str, functions: Mapping[str, Function]) -> list[str]:
    """The functions that an entry calls, directly or not, in the program's order."""
    names: set[str] = set()
    pending = [entry]
    while pending:
        callees = {
            str(instruction.args[0]) for instruction in functions[pending.pop()].code if instruction.op == "call"
        }
        pending += sorted(callees - names)
        names |= callees
    return [name for name in functions if name in names]


def depends_on_microbatch(instruction: Instruction) -> bool:
    """Whether an instruction is a `rank.*` op over the microbatch axis."""
    axes = instruction.kwargs.get("axes")
    names = [axis for text in axes for axis in str(text).split(",")] if isinstance(axes, list | tuple) else []
    return MICROBATCH in names and instruction.op in RANK_OPS


def microbatch_functions(functions: Mapping[str, Function]) -> frozenset[str]:
    """The functions that take the microbatch as an argument: they use it, or pass it on to a function that does."""
    names = {name for name, function in functions.items() if any(map(depends_on_microbatch, function.code))}
    grows = True
    while grows:
        callers = {
            name for name, function in functions.items() if any(_passes_on(call, names) for call in function.code)
        }
        grows = not callers <= names
        names |= callers
    return frozenset(names)


def microbatches_per_call(functions: Mapping[str, Function]) -> dict[str, int]:
    """For each function that is called for several microbatches at once: how many."""
    counts: dict[str, int] = {}
    for function in functions.values():
        for instruction in function.code:
            microbatches = instruction.kwargs.get(MICROBATCH)
            if instruction.op == "call" and isinstance(microbatches, list | tuple):
                counts[str(instruction.args[0])] = len(microbatches)
    return counts


def _passes_on(instruction: Instruction, callees: set[str]) -> bool:
    return instruction.op == "call" and instruction.args[0] in callees and MICROBATCH not in instruction.kwargs


def _with_slots(records: Sequence[Record], slots: Sequence[int]) -> tuple[Record, ...]:
    return tuple(replace(record, slot=slot) for record, slot in zip(records, slots, strict=True))
