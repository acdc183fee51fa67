"""When each task of a schedule runs, if every rank starts its next task as soon as what it needs is there.

A forward needs that of the stage before, a backward that of the stage behind and its own forward, W its B. What comes
from another rank comes `Costs.c` later. An overlapped pair is one piece of work: it starts when both have what they
need, and gives both results at its end. What all ranks share is there when the last of them has done its part, and
`Costs.c` later where there is more than one.
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
        per_rank = zip(self.starts, self.ends, strict=True)
        return tuple(ends[-1] - starts[0] if ends else 0.0 for starts, ends in per_rank)


def needs(schedule: Schedule, task: Task) -> tuple[Task, ...]:
    """The tasks whose results a task reads; a backward may be there as `B` or as `BW`.

    >>> [str(each) for each in needs(Schedule("", 2, 4, (0, 1), ((), ())), Task(Kind.B, 0, 3))]
    ['F of microbatch 3 on stage 0', 'B of microbatch 3 on stage 1']
    """
    kind, stage, microbatch = task
    met = _met(schedule, task)
    shared = () if met is None else tuple(Task(met, rank, microbatch) for rank in range(schedule.ranks))
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


def meetings(schedule: Schedule) -> frozenset[Kind]:
    """The kinds of shared tasks after which ranks meet."""
    kinds = (Kind.E, Kind.S, Kind.T)[: 1 + max(schedule.barriers, 1)]
    return schedule.shared.intersection(kinds)


def _met(schedule: Schedule, task: Task) -> Kind | None:
    """The kind of shared tasks of all ranks that a task waits for."""
    kind, stage, _ = task
    met: Kind | None = None
    if kind == Kind.F and stage == 0:
        met = Kind.E
    elif kind == Kind.T:
        met = Kind.S
    elif kind in (Kind.B, Kind.BW) and stage == schedule.stages - 1:
        met = Kind.T if schedule.barriers > 1 else Kind.S
    return met if met in schedule.shared else None


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
        self.waiting: dict[tuple[int, int], list[int]] = defaultdict(list)
        ranks = schedule.placement
        self.delay = [costs.c if a != b else 0.0 for a, b in pairwise(ranks)]
        self.link = costs.c if schedule.ranks > 1 else 0.0
        self.last = schedule.stages - 1
        shared = schedule.shared
        self.before_first = Kind.E if Kind.E in shared else None
        self.before_last = (Kind.T if schedule.barriers > 1 else Kind.S) if Kind.S in shared else None
        self.meets: dict[tuple[int, int], tuple[int, float]] = defaultdict(lambda: (0, 0.0))

    def all_ranks(self) -> None:
        """Run every rank until it waits for one that waits, or is done."""
        ready = list(reversed(range(self.schedule.ranks)))
        while ready:
            ready.extend(self._one_rank(ready.pop()))

    def blocked(self) -> bool:
        """Whether a rank has tasks left."""
        return any(position < len(tasks) for position, tasks in zip(self.positions, self.schedule.order, strict=True))

    def _one_rank(self, rank: int) -> list[int]:
        """Run a rank until it has to wait; the ranks that waited for what it did."""
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
        """Note the end of a task, and who waited for it."""
        kind, stage, microbatch = task
        if kind >= Kind.S:
            count, latest = self.meets[kind, microbatch]
            self.meets[kind, microbatch] = count + 1, max(latest, now)
            if count + 1 == self.schedule.ranks:
                woken.extend(self.waiting.pop((kind, microbatch), ()))
        elif kind != Kind.W:
            place = stage * self.schedule.microbatches + microbatch
            (self.backwards if kind else self.forwards)[place] = now
            woken.extend(self.waiting.pop((-2 if kind else -1, place), ()))

    def _ready(self, task: Task, rank: int) -> float | None:
        """When what a task reads is there; None, and the rank is told to wait, where that is not known yet."""
        kind, stage, microbatch = task
        count = self.schedule.microbatches
        place = stage * count + microbatch
        if kind == Kind.F:
            if stage == 0:
                return self._met(self.before_first, microbatch, rank)
            return self._after(False, place - count, self.delay[stage - 1], rank)
        if kind == Kind.W:
            return self._after(True, place, 0.0, rank)
        if kind >= Kind.S:
            return self._ready_shared(kind, microbatch, rank)
        own = self._after(False, place, 0.0, rank)
        if own is None:
            return None
        if stage == self.last:
            met = self._met(self.before_last, microbatch, rank)
            return None if met is None else max(own, met)
        behind = self._after(True, place + count, self.delay[stage], rank)
        return None if behind is None else max(own, behind)

    def _ready_shared(self, kind: Kind, microbatch: int, rank: int) -> float | None:
        """The same of a task that every rank has a part of."""
        if kind == Kind.E:
            return 0.0
        if kind == Kind.T:
            return self._met(Kind.S, microbatch, rank)
        backward = kind == Kind.G
        stage = 0 if backward else self.last
        delay = self.link if self.schedule.placement[stage] != rank else 0.0
        return self._after(backward, stage * self.schedule.microbatches + microbatch, delay, rank)

    def _met(self, kind: Kind | None, microbatch: int, rank: int) -> float | None:
        """When all ranks have done their part, and know of the others'; 0 where there is nothing to wait for."""
        if kind is None:
            return 0.0
        count, latest = self.meets[kind, microbatch]
        if count < self.schedule.ranks:
            self.waiting[kind, microbatch].append(rank)
            return None
        return latest + self.link

    def _after(self, backward: bool, place: int, delay: float, rank: int) -> float | None:
        end = (self.backwards if backward else self.forwards)[place]
        if end is None:
            self.waiting[-2 if backward else -1, place].append(rank)
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
    places = {
        _result(task): (rank, position)
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


def _result(task: Task) -> Task:
    """The task under the name by which others need it."""
    return task._replace(kind=Kind.B) if task.kind == Kind.BW else task


def _wait(schedule: Schedule, rank: int, positions: list[int], places: dict[Task, tuple[int, int]]) -> _Wait:
    task = schedule.order[rank][positions[rank]]

    def runs(needed: Task) -> bool:
        return needed in places and places[needed][1] < positions[places[needed][0]]

    missing = next(needed for needed in needs(schedule, task) if not runs(needed))
    return _Wait(rank, task, positions[rank], missing)


def _cycle(waits: dict[int, _Wait], places: dict[Task, tuple[int, int]]) -> list[_Wait]:
    """The waits that close a circle, from the lowest rank of it."""
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
        help="every microbatch needs its forward on all stages, and its backward on all or none",
    )


def _too_early(schedule: Schedule, wait: _Wait, later: int) -> ScheduleError:
    value = "result" if wait.missing.kind == Kind.F else "gradient"
    return ScheduleError(
        ScheduleCode.TOO_EARLY,
        f"rank {wait.rank} runs {wait.task} before the {value} that it uses is there",
        span=schedule.span(wait.rank, wait.position),
        notes=((f"{wait.missing} is its task {later}, this is its task {wait.position}",
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
            (f"rank {wait.rank} waits to run {wait.task} for {wait.missing}", schedule.span(wait.rank, wait.position))
            for wait in cycle
        ),
        help="let one of these ranks run first what the rank before it waits for",
    )
