"""Simulate a schedule: every rank starts its next task as soon as the task's dependencies are met.

A forward depends on that of the previous stage, a backward on that of the next stage and on its own forward, W on its
B. A result of another rank arrives `Costs.c` after its end. An overlapped pair starts when both tasks can, and both end
together. A barrier ends when the last rank has done its part, plus `Costs.c` if there are several ranks.
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
    """Start and end of every task, parallel to `Schedule.order`, in the unit of the costs."""

    starts: tuple[tuple[float, ...], ...]
    ends: tuple[tuple[float, ...], ...]

    @property
    def makespan(self) -> float:
        """From the start (0) to the end of the last task of all ranks."""
        return max((ends[-1] for ends in self.ends if ends), default=0.0)

    @property
    def spans(self) -> tuple[float, ...]:
        """For each rank, from the start of its first task to the end of its last."""
        per_rank = zip(self.starts, self.ends, strict=True)
        return tuple(ends[-1] - starts[0] if ends else 0.0 for starts, ends in per_rank)


def needs(schedule: Schedule, task: Task) -> tuple[Task, ...]:
    """The tasks that a task depends on; a backward is named `B`, also where it is a `BW`.

    >>> [str(task) for task in needs(Schedule("", 2, 4, (0, 1), ((), ())), Task(Kind.B, 0, 3))]
    ['F of microbatch 3 on stage 0', 'B of microbatch 3 on stage 1']
    """
    kind, stage, microbatch = task
    barrier = _awaited_kind(schedule, task)
    shared = () if barrier is None else tuple(Task(barrier, rank, microbatch) for rank in range(schedule.ranks))
    match kind:
        case Kind.F:
            return (Task(Kind.F, stage - 1, microbatch),) if stage else shared
        case Kind.W:
            return (Task(Kind.B, stage, microbatch),)
        case Kind.S:
            return (Task(Kind.F, schedule.stages - 1, microbatch),)
        case Kind.T:
            return shared
        case Kind.E:
            return ()
        case Kind.G:
            return (Task(Kind.B, 0, microbatch),)
    own = Task(Kind.F, stage, microbatch)
    return (own, *shared) if stage == schedule.stages - 1 else (own, Task(Kind.B, stage + 1, microbatch))


def barrier_kinds(schedule: Schedule) -> frozenset[Kind]:
    """The kinds of shared tasks that end in a barrier."""
    kinds = (Kind.E, Kind.S, Kind.T)[: 1 + max(schedule.barriers, 1)]
    return schedule.shared.intersection(kinds)


def _awaited_kind(schedule: Schedule, task: Task) -> Kind | None:
    """The kind of the shared tasks whose barrier a task waits for."""
    kind, stage, _ = task
    awaited: Kind | None = None
    if kind == Kind.F and stage == 0:
        awaited = Kind.E
    elif kind == Kind.T:
        awaited = Kind.S
    elif kind in (Kind.B, Kind.BW) and stage == schedule.stages - 1:
        awaited = Kind.T if schedule.barriers > 1 else Kind.S
    return awaited if awaited in schedule.shared else None


def simulate(schedule: Schedule, costs: Costs) -> Timeline:
    """The times of all tasks. Raises ScheduleError if ranks block for ever (E0720, E0721, E0724)."""
    run = _Simulation(schedule, costs)
    run.all_ranks()
    if run.blocked():
        raise _stuck(schedule, run.positions)
    return Timeline(tuple(map(tuple, run.starts)), tuple(map(tuple, run.ends)))


class _Simulation:
    """One simulation; `forwards` and `backwards` hold ends at index `stage * microbatches + microbatch`."""

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
        self.waiting: dict[tuple[int, int], list[int]] = defaultdict(list)
        ranks = schedule.placement
        self.delay = [costs.c if a != b else 0.0 for a, b in pairwise(ranks)]
        self.link = costs.c if schedule.ranks > 1 else 0.0
        self.last = schedule.stages - 1
        shared = schedule.shared
        self.before_first = Kind.E if Kind.E in shared else None
        self.before_last = (Kind.T if schedule.barriers > 1 else Kind.S) if Kind.S in shared else None
        self.barrier_arrivals: dict[tuple[int, int], tuple[int, float]] = defaultdict(lambda: (0, 0.0))

    def all_ranks(self) -> None:
        """Run every rank until it is done or blocked for ever."""
        ready = list(reversed(range(self.schedule.ranks)))
        while ready:
            ready.extend(self._one_rank(ready.pop()))

    def blocked(self) -> bool:
        """Whether a rank has tasks left."""
        return any(position < len(tasks) for position, tasks in zip(self.positions, self.schedule.order, strict=True))

    def _one_rank(self, rank: int) -> list[int]:
        """Run a rank until it waits; returns the ranks that its tasks wake."""
        tasks, starts, ends = self.schedule.order[rank], self.starts[rank], self.ends[rank]
        overlapped, position, woken = self.schedule.overlapped, self.positions[rank], list[int]()
        now = ends[-1] if ends else 0.0
        while position < len(tasks):
            group = (
                tasks[position : position + 2]
                if overlapped and tasks[position] in overlapped
                else tasks[position : position + 1]
            )
            start = now
            for task in group:
                ready = self._ready(task, rank)
                if ready is None:
                    self.positions[rank] = position
                    return woken
                start = max(start, ready)
            now = start + (self.pair if len(group) == 2 else self.durations[group[0].kind])
            for task in group:
                starts.append(start)
                ends.append(now)
                self._finish(task, now, woken)
            position += len(group)
        self.positions[rank] = position
        return woken

    def _finish(self, task: Task, now: float, woken: list[int]) -> None:
        """Record the end of a task, and add the ranks that waited for it to `woken`."""
        kind, stage, microbatch = task
        if kind >= Kind.S:
            count, latest = self.barrier_arrivals[kind, microbatch]
            self.barrier_arrivals[kind, microbatch] = count + 1, max(latest, now)
            if count + 1 == self.schedule.ranks:
                woken.extend(self.waiting.pop((kind, microbatch), ()))
        elif kind != Kind.W:
            place = stage * self.schedule.microbatches + microbatch
            (self.backwards if kind else self.forwards)[place] = now
            woken.extend(self.waiting.pop((-2 if kind else -1, place), ()))

    def _ready(self, task: Task, rank: int) -> float | None:
        """When the dependencies of a task are met; None, with the rank registered as waiting, if not known yet."""
        kind, stage, microbatch = task
        count = self.schedule.microbatches
        place = stage * count + microbatch
        if kind == Kind.F:
            if stage == 0:
                return self._barrier_time(self.before_first, microbatch, rank)
            return self._end_of(False, place - count, self.delay[stage - 1], rank)
        if kind == Kind.W:
            return self._end_of(True, place, 0.0, rank)
        if kind >= Kind.S:
            return self._ready_shared(kind, microbatch, rank)
        own = self._end_of(False, place, 0.0, rank)
        if own is None:
            return None
        if stage == self.last:
            barrier = self._barrier_time(self.before_last, microbatch, rank)
            return None if barrier is None else max(own, barrier)
        behind = self._end_of(True, place + count, self.delay[stage], rank)
        return None if behind is None else max(own, behind)

    def _ready_shared(self, kind: Kind, microbatch: int, rank: int) -> float | None:
        """`_ready` of a shared task."""
        if kind == Kind.E:
            return 0.0
        if kind == Kind.T:
            return self._barrier_time(Kind.S, microbatch, rank)
        backward = kind == Kind.G
        stage = 0 if backward else self.last
        delay = self.link if self.schedule.placement[stage] != rank else 0.0
        return self._end_of(backward, stage * self.schedule.microbatches + microbatch, delay, rank)

    def _barrier_time(self, kind: Kind | None, microbatch: int, rank: int) -> float | None:
        """When a barrier ends; 0 without one, None if not known yet."""
        if kind is None:
            return 0.0
        count, latest = self.barrier_arrivals[kind, microbatch]
        if count < self.schedule.ranks:
            self.waiting[kind, microbatch].append(rank)
            return None
        return latest + self.link

    def _end_of(self, backward: bool, place: int, delay: float, rank: int) -> float | None:
        end = (self.backwards if backward else self.forwards)[place]
        if end is None:
            self.waiting[-2 if backward else -1, place].append(rank)
            return None
        return end + delay


@dataclass(frozen=True)
class _Wait:
    """A rank whose next task depends on a task that did not run."""

    rank: int
    task: Task
    position: int
    missing: Task


def _stuck(schedule: Schedule, positions: list[int]) -> ScheduleError:
    """The error for blocked ranks: a missing task, a task before its dependency on its rank, or a cycle of ranks."""
    places = {
        _as_needed(task): (rank, position)
        for rank, tasks in enumerate(schedule.order)
        for position, task in enumerate(tasks)
    }
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


def _as_needed(task: Task) -> Task:
    """The task as dependencies name it: a `BW` is a `B`."""
    return task._replace(kind=Kind.B) if task.kind == Kind.BW else task


def _wait(schedule: Schedule, rank: int, positions: list[int], places: dict[Task, tuple[int, int]]) -> _Wait:
    task = schedule.order[rank][positions[rank]]

    def runs(needed: Task) -> bool:
        return needed in places and places[needed][1] < positions[places[needed][0]]

    missing = next(needed for needed in needs(schedule, task) if not runs(needed))
    return _Wait(rank, task, positions[rank], missing)


def _cycle(waits: dict[int, _Wait], places: dict[Task, tuple[int, int]]) -> list[_Wait]:
    """The waits that form a cycle, from its lowest rank."""
    seen: list[int] = []
    rank = min(waits)
    while rank not in seen:
        seen.append(rank)
        rank = places[waits[rank].missing][0]
    cycle = seen[seen.index(rank) :]
    first = cycle.index(min(cycle))
    return [waits[rank] for rank in cycle[first:] + cycle[:first]]


def _missing(schedule: Schedule, wait: _Wait) -> ScheduleError:
    return ScheduleError(
        ScheduleCode.NOT_COMPLETE,
        f"rank {wait.rank} runs {wait.task}, but no rank runs {wait.missing}",
        span=schedule.span(wait.rank, wait.position),
        help="run every microbatch's forward on all stages, and its backward on all or none",
    )


def _too_early(schedule: Schedule, wait: _Wait, later: int) -> ScheduleError:
    value = "result" if wait.missing.kind == Kind.F else "gradient"
    return ScheduleError(
        ScheduleCode.TOO_EARLY,
        f"rank {wait.rank} runs {wait.task} before the {value} that it reads exists",
        span=schedule.span(wait.rank, wait.position),
        notes=((f"{wait.missing} is task {later} of the rank, and this is task {wait.position}",
                schedule.span(wait.rank, later)),),
        help=f"run {wait.missing} first",
    )  # fmt: skip


def _deadlock(schedule: Schedule, cycle: list[_Wait]) -> ScheduleError:
    ranks = [wait.rank for wait in cycle]
    return ScheduleError(
        ScheduleCode.DEADLOCK,
        f"deadlock: ranks {' -> '.join(map(str, [*ranks, ranks[0]]))} wait for each other",
        span=schedule.span(cycle[0].rank, cycle[0].position),
        notes=tuple(
            (f"rank {wait.rank}: {wait.task} waits for {wait.missing}", schedule.span(wait.rank, wait.position))
            for wait in cycle
        ),
        help="on one of these ranks, move the task that another one waits for to the front",
    )
