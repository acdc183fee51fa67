"""The lanes of a program's functions: what runs beside which collective, in time by counts.

Durations are in bytes moved, as `schedule-lanes` counts them: an op takes the bytes that it reads and writes, or its
FLOPs at `FLOPS_PER_BYTE`, a collective what a rank sends at `LINK_BYTE`. They are good for ratios. A function is walked
once for all its calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map

from ...costs.communication import LINK_BYTE, ring_bytes
from ...costs.roofline import FLOPS_PER_BYTE, flop_formulas
from ...ir.collectives import COLLECTIVES, synchronous
from ...passes.overlap.list_schedule import COMPUTE, Job, timeline
from ...runtime.program.arguments import DTYPES, Json, Slot
from ...runtime.program.program import Program
from ...runtime.program.records import Function, Instruction, Location
from .traffic import stating_types

CALL = "call"


@dataclass(frozen=True)
class Work:
    """One instruction on its lane, from `begin` to `end`."""

    op: str
    place: Location
    lane: str
    begin: float
    end: float
    bytes: int
    """What it reads and writes; of a collective what a rank sends."""
    flops: float


@dataclass(frozen=True)
class Beside:
    """A collective, where it starts and is waited for, and what runs in between."""

    kind: str
    axes: tuple[str, ...]
    lane: str
    start: Location
    """Of the operation that it belongs to."""
    wait: Location
    """Of the first operation behind its last wait."""
    operations: int
    """What computes in between."""
    bytes: int
    flops: float
    duration: float
    hidden: float
    """How much of it nothing waits for."""

    def to_json(self) -> dict[str, Json]:
        return {
            "kind": self.kind, "axes": list(self.axes), "lane": self.lane, "starts": _place(self.start),
            "waited_for": _place(self.wait), "operations": self.operations, "bytes": self.bytes, "flops": self.flops,
            "time": self.duration, "hidden": self.hidden,
        }  # fmt: skip


@dataclass(frozen=True)
class FunctionLanes:
    """A function: its work by lanes, and its collectives."""

    name: str
    calls: int
    """In a step of one rank; in a pipeline of the stage with the most."""
    work: tuple[Work, ...]
    collectives: tuple[Beside, ...]
    total: float

    def to_json(self) -> dict[str, Json]:
        return {
            "function": self.name, "calls": self.calls, "time": self.total,
            "collectives": [each.to_json() for each in self.collectives],
        }  # fmt: skip


def lanes_of(program: Program) -> tuple[FunctionLanes, ...]:
    """The functions that communicate, entries last."""
    return _Walk(stating_types(program)).all()


class _Walk:
    def __init__(self, program: Program) -> None:
        self._program = program
        self._known: dict[str, FunctionLanes] = {}

    def all(self) -> tuple[FunctionLanes, ...]:
        """Every function that an entry reaches and that communicates."""
        calls: Counter[str] = Counter()
        for entry in self._program.entries:
            calls |= self._calls(entry.name)
        found = [self._function(name, calls[name]) for name in calls]
        return tuple(each for each in reversed(found) if each.collectives)

    def _calls(self, name: str) -> Counter[str]:
        counts = Counter({name: 1})
        for step in self._program.functions[name].code:
            if step.op == CALL:
                counts.update(self._calls(str(step.args[0])))
        return counts

    def _function(self, name: str, calls: int = 1) -> FunctionLanes:
        if name not in self._known or self._known[name].calls != calls:
            self._known[name] = self._walk(name, calls)
        return self._known[name]

    def _walk(self, name: str, calls: int) -> FunctionLanes:
        function = self._program.functions[name]
        views = {slot for slot, _ in function.views}
        made: dict[int, int] = {}
        counted = [self._counts(name, step, views) for step in function.code]
        jobs: list[Job] = []
        for number, step in enumerate(function.code):
            starts = [made[slot] for slot in step.reads() if slot in made] if step.op == "comm.wait" else []
            jobs.append(_job(step, counted[number], starts[0] if starts else None))
            if step.op.endswith("_start"):
                made.update(dict.fromkeys(step.writes(), number))
        times = timeline(jobs, range(len(jobs)))
        work = tuple(
            Work(step.op, self._location(step), jobs[n].lane, times.begins[n], times.ends[n], *counted[n][1:])
            for n, step in enumerate(function.code)
        )
        waits: dict[int, list[int]] = {number: [] for number, job in enumerate(jobs) if job.lane != COMPUTE}
        for number, job in enumerate(jobs):
            if job.waits:
                waits[job.needs[0]].append(number)
        besides = [self._beside(function, start, own, work) for start, own in waits.items()]
        return FunctionLanes(name, calls, work, tuple(besides), times.total)

    def _beside(self, function: Function, number: int, waits: Sequence[int], work: Sequence[Work]) -> Beside:
        step, own = function.code[number], work[number]
        last = waits[0] if waits else len(work) - 1
        between = [each for each in work[number + 1 : last] if each.lane == COMPUTE and each.end > each.begin]
        stalled = sum(work[wait].end - work[wait].begin for wait in waits)
        behind = next((each for each in work[last + 1 :] if each.end > each.begin), work[last])
        return Beside(
            _kind(step), _axes(step), own.lane, own.place,
            behind.place, len(between), sum(each.bytes for each in between), sum(each.flops for each in between),
            own.end - own.begin, max(0.0, own.end - own.begin - stalled),
        )  # fmt: skip

    def _location(self, step: Instruction) -> Location:
        return Location("", 0) if step.loc is None else self._program.locations[step.loc]

    def _counts(self, name: str, step: Instruction, views: set[int]) -> tuple[float, int, float]:
        """Of an instruction: its duration, its bytes and its FLOPs."""
        types = {slot: self._program.type_of(name, slot) for slot in (*step.reads(), *step.writes())}
        sizes = {slot: type_.bytes for slot, type_ in types.items() if type_ is not None}
        if step.op == CALL:
            inner = self._function(str(step.args[0]))
            return inner.total, sum(each.bytes for each in inner.work), sum(each.flops for each in inner.work)
        known = COLLECTIVES.get(synchronous(step.op))
        if known is not None:
            sides = (step.reads()[: 1 if known.counts else None], step.writes())
            axes = step.kwargs["axes"]
            assert isinstance(axes, list | tuple), "validated"
            most = max(sum(sizes.get(slot, 0) for slot in side) for side in sides)
            sent = ring_bytes(known.kind, most, self._program.mesh.size(tuple(map(str, axes))))
            return LINK_BYTE * sent, sent, 0.0
        if step.op.startswith(("comm.", "rank.")) or all(slot in views for slot in step.writes()):
            return 0.0, 0, 0.0
        moved = sum(sizes.values())
        flops = _flops(step, types)
        return max(float(moved), flops / FLOPS_PER_BYTE), moved, flops


def _job(step: Instruction, counted: tuple[float, int, float], start: int | None) -> Job:
    if step.op == "comm.wait":
        return Job(0.0, () if start is None else (start,), waits=start is not None)
    if step.op.endswith("_start"):
        return Job(counted[0], (), step.lane or ", ".join(_axes(step)))
    return Job(counted[0])


def _axes(step: Instruction) -> tuple[str, ...]:
    """The axes of a collective, or the one of a message."""
    axes = step.kwargs.get("axes", step.kwargs.get("axis", ()))
    return tuple(map(str, axes)) if isinstance(axes, list | tuple) else (str(axes),)


def _kind(step: Instruction) -> str:
    return step.op.removeprefix("comm.").removesuffix("_start")


def _flops(step: Instruction, types: Mapping[int, Any]) -> float:
    """The floating-point operations of one op; 0 where torch has no formula for it."""
    formula = flop_formulas().get(step.op)
    if formula is None:
        return 0.0

    def meta(value: object) -> object:
        type_ = types.get(value.index) if isinstance(value, Slot) else None
        return value if type_ is None else torch.empty(type_.shape, dtype=DTYPES[type_.dtype], device="meta")

    def is_slot(value: object) -> bool:
        return isinstance(value, Slot)

    args = tree_map(meta, list(step.args), is_leaf=is_slot)
    kwargs = {key: tree_map(meta, value, is_leaf=is_slot) for key, value in step.kwargs.items()}
    made = [None if slot is None else meta(Slot(slot)) for slot in step.out]  # a formula reads results by position
    return float(formula(*args, **kwargs, out_val=made[0] if len(made) == 1 else tuple(made)))


def _place(location: Location) -> dict[str, Json]:
    return {"module": location.module, "file": location.file, "line": location.line}
