"""When each task of a schedule runs, if every rank starts its next task as soon as what it needs is there.

A forward needs that of the stage before, a backward that of the stage behind and its own forward, W its B. What comes
from another rank comes `Costs.c` later. An overlapped pair is one piece of work: it starts when both have what they
need, and gives both results at its end.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

from .costs import Costs
from .error import ScheduleCode, ScheduleError
from .schedule import Kind, Schedule, Task


@dataclass(frozen=True)
class Timeline:
    """Start and end of every task, beside `Schedule.order`, in the unit of time of the costs."""

    starts: tuple[tuple[float, ...], ...]
    ends: tuple[tuple[float, ...], ...]

    @property
    def makespan(self) -> float:
        """From the start of the first task to the end of the last one of all ranks."""
        return max((ends[-1] for ends in self.ends if ends), default=0.0)

    @property
    def spans(self) -> tuple[float, ...]:
        """For each rank, from the start of its first task to the end of its last."""
        both = zip(self.starts, self.ends, strict=True)
        return tuple(ends[-1] - starts[0] if ends else 0.0 for starts, ends in both)


def needs(task: Task, stages: int) -> tuple[Task, ...]:
    """The tasks whose results a task reads; a backward may be there as `B` or as `BW`.

    >>> [str(each) for each in needs(Task(Kind.B, 0, 3), 2)]
    ['F of microbatch 3 on stage 0', 'B of microbatch 3 on stage 1']
    """
    kind, stage, microbatch = task
    if kind == Kind.F:
        return (Task(Kind.F, stage - 1, microbatch),) if stage else ()
    if kind == Kind.W:
        return (Task(Kind.B, stage, microbatch),)
    own = Task(Kind.F, stage, microbatch)
    return (own,) if stage == stages - 1 else (own, Task(Kind.B, stage + 1, microbatch))


def simulate(schedule: Schedule, costs: Costs) -> Timeline:
    """The times of all tasks. Raises ScheduleError where the ranks would wait for ever (E0720, E0721, E0724)."""
    run = _Run(schedule, costs)
    run.all_ranks()
    if run.blocked():
        raise _stuck(schedule, run.positions)
    return Timeline(tuple(map(tuple, run.starts)), tuple(map(tuple, run.ends)))


class _Run:
    """One run of a schedule; ends of F and of B are at `stage * microbatches + microbatch`."""

    def __init__(self, schedule: Schedule, costs: Costs) -> None:
        self.schedule = schedule
        self.durations = costs.durations(schedule.chunks)
        self.pair = costs.pair(schedule.chunks)
        self.positions = [0] * schedule.ranks
        self.starts: list[list[float]] = [[] for _ in schedule.order]
        self.ends: list[list[float]] = [[] for _ in schedule.order]
        count = schedule.stages * schedule.microbatches
        self.forwards: list[float | None] = [None] * count
        self.backwards: list[float | None] = [None] * count
        self.waiting: dict[tuple[bool, int], list[int]] = defaultdict(list)
        ranks = schedule.placement
        self.delay = [costs.c if a != b else 0.0 for a, b in pairwise(ranks)]

    def all_ranks(self) -> None:
        """Run every rank until it waits for one that waits, or is done."""
        ready = list(reversed(range(self.schedule.ranks)))
        while ready:
            ready.extend(self._one_rank(ready.pop()))

    def blocked(self) -> bool:
        """Whether a rank has tasks left."""
        return any(at < len(tasks) for at, tasks in zip(self.positions, self.schedule.order, strict=True))

    def _one_rank(self, rank: int) -> list[int]:
        """Run a rank until it has to wait; the ranks that waited for what it did."""
        tasks, starts, ends = self.schedule.order[rank], self.starts[rank], self.ends[rank]
        overlapped, at, woken = self.schedule.overlapped, self.positions[rank], list[int]()
        now = ends[-1] if ends else 0.0
        while at < len(tasks):
            group = tasks[at : at + 2] if overlapped and tasks[at] in overlapped else tasks[at : at + 1]
            start = now
            for task in group:
                ready = self._ready(task, rank)
                if ready is None:
                    self.positions[rank] = at
                    return woken
                start = max(start, ready)
            now = start + (self.pair if len(group) == 2 else self.durations[group[0].kind])
            for task in group:
                starts.append(start)
                ends.append(now)
                self._finish(task, now, woken)
            at += len(group)
        self.positions[rank] = at
        return woken

    def _finish(self, task: Task, now: float, woken: list[int]) -> None:
        """Note the end of a task, and who waited for it."""
        kind, stage, microbatch = task
        if kind != Kind.W:
            place = stage * self.schedule.microbatches + microbatch
            (self.backwards if kind else self.forwards)[place] = now
            woken.extend(self.waiting.pop((bool(kind), place), ()))

    def _ready(self, task: Task, rank: int) -> float | None:
        """When what a task reads is there; None, and the rank is told to wait, where that is not known yet."""
        kind, stage, microbatch = task
        count = self.schedule.microbatches
        place = stage * count + microbatch
        if kind == Kind.F:
            return 0.0 if stage == 0 else self._after(False, place - count, self.delay[stage - 1], rank)
        if kind == Kind.W:
            return self._after(True, place, 0.0, rank)
        own = self._after(False, place, 0.0, rank)
        if own is None or stage == self.schedule.stages - 1:
            return own
        behind = self._after(True, place + count, self.delay[stage], rank)
        return None if behind is None else max(own, behind)

    def _after(self, backward: bool, place: int, delay: float, rank: int) -> float | None:
        end = (self.backwards if backward else self.forwards)[place]
        if end is None:
            self.waiting[backward, place].append(rank)
            return None
        return end + delay


@dataclass(frozen=True)
class _Wait:
    """A rank whose next task needs one that did not run."""

    rank: int
    task: Task
    position: int
    missing: Task


def _stuck(schedule: Schedule, positions: list[int]) -> ScheduleError:
    """The error for ranks that wait: a task before what it needs on its own rank, or a cycle of ranks."""
    places = {_result(task): (rank, at) for rank, tasks in enumerate(schedule.order) for at, task in enumerate(tasks)}
    waits = {
        rank: _wait(schedule, rank, positions, places)
        for rank in range(schedule.ranks)
        if positions[rank] < len(schedule.order[rank])
    }
    for wait in waits.values():
        if wait.missing not in places:
            return _missing(schedule, wait)
        if places[wait.missing][0] == wait.rank:
            return _too_early(schedule, wait, places[wait.missing][1])
    return _deadlock(schedule, _cycle(waits, places))


def _result(task: Task) -> Task:
    """The task under the name by which others need it."""
    return task._replace(kind=Kind.B) if task.kind == Kind.BW else task


def _wait(schedule: Schedule, rank: int, positions: list[int], places: dict[Task, tuple[int, int]]) -> _Wait:
    task = schedule.order[rank][positions[rank]]

    def runs(each: Task) -> bool:
        return each in places and places[each][1] < positions[places[each][0]]

    missing = next(each for each in needs(task, schedule.stages) if not runs(each))
    return _Wait(rank, task, positions[rank], missing)


def _cycle(waits: dict[int, _Wait], places: dict[Task, tuple[int, int]]) -> list[_Wait]:
    """The waits that close a circle, from the lowest rank of it."""
    seen: list[int] = []
    rank = min(waits)
    while rank not in seen:
        seen.append(rank)
        rank = places[waits[rank].missing][0]
    circle = seen[seen.index(rank) :]
    first = circle.index(min(circle))
    return [waits[each] for each in circle[first:] + circle[:first]]


def _missing(schedule: Schedule, wait: _Wait) -> ScheduleError:
    return ScheduleError(
        ScheduleCode.NOT_COMPLETE,
        f"rank {wait.rank} runs {wait.task}, but no rank runs {wait.missing}",
        span=schedule.span(wait.rank, wait.position),
        help="every microbatch needs its forward on all stages, and its backward on all or none",
    )


def _too_early(schedule: Schedule, wait: _Wait, later: int) -> ScheduleError:
    what = "result" if wait.missing.kind == Kind.F else "gradient"
    return ScheduleError(
        ScheduleCode.TOO_EARLY,
        f"rank {wait.rank} runs {wait.task} before the {what} that it uses is there",
        span=schedule.span(wait.rank, wait.position),
        notes=((f"{wait.missing} is its task {later}, this is its task {wait.position}",
                schedule.span(wait.rank, later)),),
        help=f"run {wait.missing} first",
    )  # fmt: skip


def _deadlock(schedule: Schedule, circle: list[_Wait]) -> ScheduleError:
    ranks = [wait.rank for wait in circle]
    return ScheduleError(
        ScheduleCode.DEADLOCK,
        f"deadlock: ranks {' -> '.join(map(str, [*ranks, ranks[0]]))} wait for each other",
        span=schedule.span(circle[0].rank, circle[0].position),
        notes=tuple(
            (f"rank {wait.rank} waits to run {wait.task} for {wait.missing}", schedule.span(wait.rank, wait.position))
            for wait in circle
        ),
        help="let one of these ranks run first what the rank before it waits for",
    )
