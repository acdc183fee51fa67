"""Vocabulary parallelism: insert the shared tasks of the output layer (S, T) and of embeddings (E, G) into a schedule.

Between the last stage's F and B of a microbatch, all ranks run S and a barrier, or S and T with a barrier after each.
To hide this, each rank may run more forwards before its backwards: at most one microbatch, and its activations, per
barrier. F, B and W keep their order. A shared task runs as soon as it can, in the same order on all ranks.

Source: Balancing Pipeline Parallelism with Vocabulary Parallelism (arXiv 2411.05288), section 5.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from heapq import heappop, heappush

from ..costs import Costs
from ..error import ScheduleError
from ..prove import prove
from ..schedule import Kind, Schedule, Task, ordered

_TOLERANCE = 1e-9
_AHEAD = 2
"""How many microbatches E runs ahead of the first stage's F."""


def share_vocabulary(
    schedule: Schedule, kinds: Collection[Kind], barriers: int, costs: Costs, cap: float | None = None
) -> Schedule:
    """The schedule with tasks of the shared `kinds` and `barriers` (1 or 2) between the last F and the first B.

    The number of forwards that ranks run ahead is the one with the least makespan within `cap`; of equal ones, the
    smallest. Raises ScheduleError as `prove` does if no number gives a schedule that can run.
    """
    most = barriers * schedule.chunks if Kind.S in kinds and schedule.has_backward else 0
    best: tuple[float, Schedule] | None = None
    failure: ScheduleError | None = None
    for ahead in range(most + 1):
        candidate = _woven(_shifted(schedule, ahead), kinds, barriers, costs)
        try:
            makespan = prove(candidate, costs, cap).makespan
        except ScheduleError as error:
            failure = failure or error
            continue
        if best is None or makespan < best[0] - _TOLERANCE:
            best = makespan, candidate
    if best is None:
        assert failure is not None
        raise failure
    return best[1]


def _shifted(schedule: Schedule, ahead: int) -> Schedule:
    """The schedule with `ahead` more forwards of its rank before each other task."""
    orders: list[list[Task]] = []
    overlapped: set[Task] = set()
    for tasks in schedule.order:
        forwards = [task for task in tasks if task.kind == Kind.F]
        order: list[Task] = []
        done = seen = 0
        for task in tasks:
            if task.kind == Kind.F:
                seen += 1
                if task in schedule.overlapped and seen - 1 + ahead < len(forwards):
                    overlapped.add(forwards[seen - 1 + ahead])
                continue
            order += forwards[done : seen + ahead]
            done = max(done, min(seen + ahead, len(forwards)))
            order.append(task)
        orders.append([*order, *forwards[done:]])
    return replace(schedule, order=ordered(orders), overlapped=frozenset(overlapped), spans=())


def _woven(schedule: Schedule, kinds: Collection[Kind], barriers: int, costs: Costs) -> Schedule:
    run = _Weaver(schedule, kinds, barriers, costs)
    run.all_tasks()
    return replace(schedule, order=ordered(run.orders), barriers=barriers, spans=())


class _Weaver:
    """The state of all ranks during scheduling; `released` has the shared tasks in their common order."""

    def __init__(self, schedule: Schedule, kinds: Collection[Kind], barriers: int, costs: Costs) -> None:
        self.schedule, self.kinds, self.costs = schedule, kinds, costs
        self.durations = costs.durations(schedule.chunks)
        self.link = costs.c if schedule.ranks > 1 else 0.0
        self.last = schedule.stages - 1
        self.last_barrier = Kind.T if barriers > 1 else Kind.S
        self.positions, self.shared = [0] * schedule.ranks, [0] * schedule.ranks
        self.free = [0.0] * schedule.ranks
        self.orders: list[list[Task]] = [[] for _ in schedule.order]
        self.released: list[tuple[Kind, int]] = []
        self.ends: dict[tuple[int, int, int], float] = {}
        """When tasks end, by kind (B also for BW), stage and microbatch."""
        self.parts: dict[tuple[Kind, int], list[float]] = {}
        self.events: list[tuple[float, int, int, int]] = []
        """(time, priority, kind, microbatch) of a shared task that is ready then, or (time, priority, -1, rank)."""

    def all_tasks(self) -> None:
        """Schedule every task; the rest of an order that cannot run goes to the end."""
        for microbatch in range(min(_AHEAD, self.schedule.microbatches)):
            self._release(Kind.E, microbatch, 0.0)
        self._wake_all(0.0)
        while self.events:
            now, _, kind, number = heappop(self.events)
            if kind >= 0:
                self.released.append((Kind(kind), number))
                self._wake_all(now)
            elif self.free[number] <= now + _TOLERANCE:
                self._visit(number, now)
        for rank, tasks in enumerate(self.schedule.order):
            self.orders[rank] += tasks[self.positions[rank] :]
            self.orders[rank] += [Task(k, rank, m) for k, m in self.released[self.shared[rank] :]]

    def _wake_all(self, now: float) -> None:
        for rank in range(self.schedule.ranks):
            self._wake_at(rank, now)

    def _wake_at(self, rank: int, now: float) -> None:
        """Visit a rank at `now`, or when it is free."""
        heappush(self.events, (max(now, self.free[rank]), 1, -1, rank))

    def _release(self, kind: Kind, microbatch: int, time: float) -> None:
        if kind in self.kinds:
            heappush(self.events, (time, 0, kind, microbatch))

    def _visit(self, rank: int, now: float) -> None:
        """Run a rank's next shared task, else its next own task or overlapped pair, or wait."""
        if self.shared[rank] < len(self.released):
            kind, microbatch = self.released[self.shared[rank]]
            self.shared[rank] += 1
            self._take(rank, now, (Task(kind, rank, microbatch),))
            return
        position, tasks = self.positions[rank], self.schedule.order[rank]
        group = tasks[
            position : position + (2 if position < len(tasks) and tasks[position] in self.schedule.overlapped else 1)
        ]
        if not group:
            return
        ready = [self._ready(task) for task in group]
        if None not in ready:
            start = max(time for time in ready if time is not None)
            if start > now + _TOLERANCE:
                heappush(self.events, (start, 1, -1, rank))
                return
            self.positions[rank] += len(group)
            self._take(rank, now, group)

    def _ready(self, task: Task) -> float | None:
        kind, stage, microbatch = task
        if kind == Kind.F:
            if stage == 0:
                return self._barrier_time(Kind.E, microbatch)
            return self._arrival_time(Kind.F, stage - 1, stage, microbatch)
        if kind == Kind.W:
            return self._arrival_time(Kind.B, stage, stage, microbatch)
        own = self._arrival_time(Kind.F, stage, stage, microbatch)
        upstream_gradient = (
            self._barrier_time(self.last_barrier, microbatch)
            if stage == self.last
            else self._arrival_time(Kind.B, stage + 1, stage, microbatch)
        )
        return None if own is None or upstream_gradient is None else max(own, upstream_gradient)

    def _arrival_time(self, kind: Kind, stage: int, to: int, microbatch: int) -> float | None:
        """When a task's result arrives at another stage's rank; None if not known yet."""
        end = self.ends.get((kind, stage, microbatch))
        placement = self.schedule.placement
        return None if end is None else end + (self.costs.c if placement[stage] != placement[to] else 0.0)

    def _barrier_time(self, kind: Kind, microbatch: int) -> float | None:
        """When the barrier after a shared task ends; 0 without one, None if not known yet."""
        if kind not in self.kinds:
            return 0.0
        parts = self.parts.get((kind, microbatch), ())
        return max(parts) + self.link if len(parts) == self.schedule.ranks else None

    def _take(self, rank: int, now: float, group: tuple[Task, ...]) -> None:
        """Run tasks, and release what their ends make ready."""
        length = self.costs.pair(self.schedule.chunks) if len(group) == 2 else self.durations[group[0].kind]
        end = self.free[rank] = now + length
        placement = self.schedule.placement
        for task in group:
            kind, stage, microbatch = task
            self.orders[rank].append(task)
            if kind.is_shared:
                parts = self.parts.setdefault((kind, microbatch), [])
                parts.append(end)
                if len(parts) == self.schedule.ranks:
                    self._wake_at(placement[0 if kind == Kind.E else self.last], max(parts) + self.link)
                    if kind == Kind.S:
                        self._release(Kind.T, microbatch, max(parts) + self.link)
                continue
            self.ends[Kind.B if kind == Kind.BW else kind, stage, microbatch] = end
            beside = stage + 1 if kind == Kind.F else stage - 1
            if kind != Kind.W and 0 <= beside <= self.last:
                self._wake_at(placement[beside], end)
            if kind == Kind.F and stage == 0 and microbatch + _AHEAD < self.schedule.microbatches:
                self._release(Kind.E, microbatch + _AHEAD, now)
            if kind == Kind.F and stage == self.last:
                self._release(Kind.S, microbatch, end + self.link)
            if kind in (Kind.B, Kind.BW) and stage == 0:
                self._release(Kind.G, microbatch, end + self.link)
        self._wake_at(rank, end)
