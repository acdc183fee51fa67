"""What of a program the interpreter reads: its records, and which of them belong to a stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from ...ir.interpreter.errors import NO_MEANING, InterpreterError
from ...ir.interpreter.grid import Grid
from ...ir.locations import Origin
from ...runtime.program.records import Function, Input, Location, Output, Pipeline

MAIN = "main"
"""The entry of all ranks in a program without a pipeline."""

Record = TypeVar("Record", Input, Output)


@dataclass(frozen=True)
class Entry:
    """Where a rank begins: its function, and the slots of its inputs and outputs there."""

    function: str
    inputs: tuple[tuple[Input, int], ...]
    outputs: tuple[tuple[int, Output, int], ...]
    """(position among the program's outputs, output, slot)."""
    ends_forward_at: int
    """The index of the first instruction of the backward; the length of the code where forward and backward are one."""


@dataclass(frozen=True)
class ProgramRecords:
    """The records of one program."""

    mesh: tuple[tuple[str, int], ...]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    functions: Mapping[str, Function]
    locations: tuple[Location, ...] = ()
    pipeline: Pipeline | None = None

    @cached_property
    def grid(self) -> Grid:
        """The ranks; microbatches are an axis without ranks."""
        return Grid(self.mesh, None if self.pipeline is None else self.pipeline.microbatches)

    def stage_of(self, rank: int) -> int | None:
        """A rank's coordinate on the pipeline axis; None without a pipeline."""
        return None if self.pipeline is None else self.grid.coordinate(rank, [self.pipeline.axis])

    def entry_of(self, rank: int) -> Entry:
        """The entry of a rank. E0652 where the program has no such function, or its slots do not match its records."""
        stage = self.stage_of(rank)
        name = MAIN if self.pipeline is None or stage is None else self.pipeline.entries[stage]
        function = self.function(name)
        inputs, outputs = of_stage(self.inputs, stage), of_stage(self.outputs, stage)
        if stage is None:
            split = len(function.code) if function.backward_at is None else function.backward_at
            slots = tuple((position, output, output.slot) for position, output in outputs)
            return Entry(name, tuple((record, record.slot) for _, record in inputs), slots, split)
        if (len(inputs), len(outputs)) != (len(function.arguments), len(function.results)):
            raise InterpreterError(
                NO_MEANING,
                f'entry "{name}" takes {len(function.arguments)} and returns {len(function.results)} slots, '
                f"but the program lists {len(inputs)} inputs and {len(outputs)} outputs of stage {stage}",
            )
        taken = tuple((record, slot) for (_, record), slot in zip(inputs, function.arguments, strict=True))
        results = tuple((*output, slot) for output, slot in zip(outputs, function.results, strict=True))
        return Entry(name, taken, results, len(function.code))

    def function(self, name: str) -> Function:
        """A function by name. E0652 where there is none."""
        if name not in self.functions:
            raise InterpreterError(NO_MEANING, f'the program has no function "{name}"')
        return self.functions[name]

    def origin(self, location: int | None) -> Origin:
        """The place in the user's sources of an instruction."""
        if location is None or not 0 <= location < len(self.locations):
            return Origin()
        place = self.locations[location]
        return Origin(place.module, place.file, place.line)


def of_stage(records: Sequence[Record], stage: int | None) -> list[tuple[int, Record]]:
    """The inputs, or outputs, of the ranks of a stage (None: all), each with its position in the program."""
    named = enumerate(records)
    return [(i, record) for i, record in named if stage is None or record.stages is None or stage in record.stages]
