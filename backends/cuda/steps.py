"""The records of a plan: the steps of an entry on their streams, with their values and the memory of these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ...runtime.program.records import Instruction
from .host_work import is_host_work
from .stream_log import Path

Microbatch = int | tuple[int, ...] | None
Clock = Mapping[str, int]
"""By stream: the number of its steps that happen before."""


@dataclass(eq=False)
class Block:
    """Memory of a stream, with its references and its last use on each stream."""

    number: int
    stream: str
    nbytes: int
    static: bool = False
    holders: int = 0
    uses: dict[str, tuple[int, Clock]] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)
    """Those that lie in it, whose data ends when it is free."""


@dataclass(eq=False)
class Value:
    """The value of a slot: the memory that it keeps, and the step that made it."""

    blocks: tuple[Block, ...]
    stream: str
    number: int
    clock: Clock
    result: tuple[Block, ...] = ()
    """Of a future: the memory of its tensor, which is among `blocks`."""
    data: Any = None
    """The device's own."""


class Mark(Enum):
    """What a step is that is no instruction."""

    BEGIN = "begin"
    """All streams begin behind it; with `capture`, a graph begins."""
    MEET = "meet"
    """It is behind all streams; with `capture`, the graph ends."""


@dataclass(eq=False)
class Step:
    """Work on a stream: an instruction, or a mark."""

    stream: str
    number: int
    path: Path = ()
    instruction: Instruction | None = None
    mark: Mark | None = None
    microbatch: Microbatch = None
    operands: Mapping[int, Value] = field(default_factory=dict)
    """By slot."""
    results: Sequence[Value] = ()
    """For each of the instruction's results, also of those that it drops."""
    made: Sequence[Block] = ()
    """The blocks that are allocated for it."""
    waits: Sequence[tuple[str, int]] = ()
    """Steps of other streams, as (stream, number), that the stream waits for first."""
    frees_before: Sequence[Block] = ()
    frees: Sequence[Block] = ()
    """The blocks that are given back behind it."""
    kernel: str = ""
    """The function in whose place a kernel runs."""

    @property
    def reads(self) -> tuple[int, ...]:
        """The numbers of the blocks that it reads."""
        return tuple(dict.fromkeys(block.number for value in self.operands.values() for block in value.blocks))

    @property
    def is_host_work(self) -> bool:
        """Whether the host waits for it."""
        return self.instruction is not None and is_host_work(self.instruction)


@dataclass
class Part:
    """The steps of a forward, or of a backward."""

    steps: list[Step] = field(default_factory=list)
    taken: list[Value] = field(default_factory=list)
    """The values of its inputs, in the program's order."""
    given: list[Value] = field(default_factory=list)
    """The values of its results, in the program's order."""


@dataclass
class EntrySteps:
    """The steps of one rank: a pipeline has no backward of its own."""

    forward: Part
    backward: Part
    streams: tuple[str, ...]

    @property
    def steps(self) -> Iterator[Step]:
        """Those of both parts."""
        yield from self.forward.steps
        yield from self.backward.steps
