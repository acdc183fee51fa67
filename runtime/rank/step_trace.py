"""What ranks of this process ran when: on request, the time of every instruction.

Instructions are timed from the end of the one before on the same rank, so that what the executor does between them
counts. A collective is drawn on its lane from its start until it was waited for: when exactly it ended, nothing tells.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..lanes.names import COMPUTE, lane_of
from ..lanes.timeline import Task
from ..program.arguments import Slot
from ..program.program import Program
from ..program.records import Instruction

MOST_TASKS = 1_000_000
"""Later ones are not kept: a file of these takes 200 MB."""
_WAIT = "comm.wait"


@dataclass
class StepTrace:
    """The tasks of all ranks so far, in seconds from the start of the trace."""

    tasks: list[Task] = field(default_factory=list)
    begin: float = field(default_factory=time.perf_counter)
    forwards: dict[int, int] = field(default_factory=dict)
    """By rank: how many forwards began."""

    @property
    def steps(self) -> int:
        """The forwards of a rank."""
        return max(self.forwards.values(), default=0)

    @property
    def is_full(self) -> bool:
        """Whether there are too many tasks, so that later ones are missing."""
        return len(self.tasks) >= MOST_TASKS


_open: list[StepTrace] = []
"""The open traces of all threads; programs run in other threads than callers."""


@contextmanager
def recording() -> Iterator[StepTrace]:
    """A context in which programs record what they run."""
    trace = StepTrace()
    _open.append(trace)
    try:
        yield trace
    finally:
        _open.remove(trace)


class TraceWatch:
    """Times the instructions of one rank in one forward or backward; called behind each of them."""

    def __init__(self, program: Program, rank: int, trace: StepTrace) -> None:
        self._program, self._rank, self._trace = program, rank, trace
        self._last = 0.0
        self._started: dict[tuple[str, int], tuple[float, Instruction]] = {}
        """By function and slot of a future: when its collective started."""

    def begin(self, *, forward: bool) -> None:
        """The first instruction of a forward, or of a backward, starts now."""
        if forward:
            self._trace.forwards[self._rank] = self._trace.forwards.get(self._rank, 0) + 1
        self._last = time.perf_counter()

    def __call__(self, function: str, index: int, op: str, *_results: object) -> None:
        """Record one instruction, and the collective that it waited for."""
        step, now = self._program.functions[function].code[index], time.perf_counter()
        lane = lane_of(step)
        if lane == COMPUTE or op == _WAIT:
            self._record(COMPUTE if op == _WAIT else lane, _name(step), step, self._last, now)
        else:
            self._started.update({(function, slot): (self._last, step) for slot in step.writes()})
        future = step.args[0] if op == _WAIT else None
        started = self._started.pop((function, future.index), None) if isinstance(future, Slot) else None
        if started is not None:
            self._record(lane_of(started[1]), _name(started[1]), started[1], started[0], now)
        self._last = time.perf_counter()

    def _record(self, lane: str, name: str, step: Instruction, start: float, end: float) -> None:
        if not self._trace.is_full:
            begin = self._trace.begin
            self._trace.tasks.append(Task(self._rank, lane, name, self._place(step), start - begin, end - begin))

    def _place(self, step: Instruction) -> str:
        if step.loc is None:
            return ""
        location = self._program.locations[step.loc]
        line = f"{location.file}:{location.line}" if location.file else ""
        return f"{location.module} {line}".strip()


def _name(step: Instruction) -> str:
    """Of a collective its kind and axes, else the op."""
    axes = step.kwargs.get("axes", step.kwargs.get("axis"))
    over = [axes] if isinstance(axes, str) else axes if isinstance(axes, list | tuple) else []
    op = step.op.removesuffix("_start").removeprefix("comm.")
    return f"{op} over {', '.join(map(str, over))}" if over and op != step.op else op.removeprefix("aten.")


def open_trace(program: Program, rank: int) -> TraceWatch | None:
    """A watch for the innermost open trace; None where none is open."""
    return TraceWatch(program, rank, _open[-1]) if _open and not _open[-1].is_full else None
