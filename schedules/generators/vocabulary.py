"""Weave what all ranks share of a vocabulary into any schedule: their parts of the output's work, and of embeddings.

Between the last stage's F and B of a microbatch all ranks do S, meet (once, or again after T), and then the gradient is
there. So that the last stage has other work until then, each rank may run some more forwards before its backwards, at
most one microbatch for each meeting: that many more activations it holds. F, B and W keep their order; a shared task
is run as soon as it can be, all ranks in the same order.

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

_SLACK = 1e-9
_AHEAD = 2
"""How many microbatches embeddings are looked up before the first stage begins with one."""


def share_vocabulary(
    schedule: Schedule, kinds: Collection[Kind], barriers: int, costs: Costs, cap: float | None = None
) -> Schedule:
    """The schedule with tasks of the shared `kinds`; ranks meet `barriers` times (1 or 2) between F and B.

    Of all numbers of forwards that a rank may run ahead, the one with the least makespan, of equals with the least
    memory, within the `cap` where there is one. Raises ScheduleError as `prove` does, where none can run.
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
        if best is None or makespan < best[0] - _SLACK:
            best = makespan, candidate
    if best is None:
        assert failure is not None
        raise failure
    return best[1]


def _shifted(schedule: Schedule, ahead: int) -> Schedule:
    """Every rank runs `ahead` more forwards before each of its other tasks."""
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
    run = _Run(schedule, kinds, barriers, costs)
    run.all_tasks()
    return replace(schedule, order=ordered(run.orders), barriers=barriers, spans=())


class _Run:
    """The state of all ranks while tasks are given out; `released` has the shared tasks in their common order."""

    def __init__(self, schedule: Schedule, kinds: Collection[Kind], barriers: int, costs: Costs) -> None:
        self.schedule, self.kinds, self.costs = schedule, kinds, costs
        self.durations = costs.durations(schedule.chunks)
        self.link = costs.c if schedule.ranks > 1 else 0.0
        self.last = schedule.stages - 1
        self.met = Kind.T if barriers > 1 else Kind.S
        self.positions, self.shared = [0] * schedule.ranks, [0] * schedule.ranks
        self.free = [0.0] * schedule.ranks
        self.orders: list[list[Task]] = [[] for _ in schedule.order]
        self.released: list[tuple[Kind, int]] = []
        self.ends: dict[tuple[int, int, int], float] = {}
        """When results are there on the rank that made them, by kind (B also for BW), stage and microbatch."""
        self.parts: dict[tuple[Kind, int], list[float]] = {}
        self.events: list[tuple[float, int, int, int]] = []
        """Time; the kind of a shared task that can be run from then on, or -1; its microbatch, or a rank."""

    def all_tasks(self) -> None:
        """Give out every task; what an order that cannot run leaves is put at the end."""
        for microbatch in range(min(_AHEAD, self.schedule.microbatches)):
            self._release(Kind.E, microbatch, 0.0)
        self._wake(0.0)
        while self.events:
            now, _, kind, number = heappop(self.events)
            if kind >= 0:
                self.released.append((Kind(kind), number))
                self._wake(now)
            elif self.free[number] <= now + _SLACK:
                self._visit(number, now)
        for rank, tasks in enumerate(self.schedule.order):
            self.orders[rank] += tasks[self.positions[rank] :]
            self.orders[rank] += [Task(k, rank, m) for k, m in self.released[self.shared[rank] :]]

    def _wake(self, now: float) -> None:
        for rank in range(self.schedule.ranks):
            self._look(rank, now)

    def _look(self, rank: int, now: float) -> None:
        """Let a rank see at some time, or when it is free, what it can run."""
        heappush(self.events, (max(now, self.free[rank]), 1, -1, rank))

    def _release(self, kind: Kind, microbatch: int, time: float) -> None:
        if kind in self.kinds:
            heappush(self.events, (time, 0, kind, microbatch))

    def _visit(self, rank: int, now: float) -> None:
        """Let a rank take what is shared, else its next own task (or overlapped pair), or wait."""
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
            if start > now + _SLACK:
                heappush(self.events, (start, 1, -1, rank))
                return
            self.positions[rank] += len(group)
            self._take(rank, now, group)

    def _ready(self, task: Task) -> float | None:
        kind, stage, microbatch = task
        if kind == Kind.F:
            if stage == 0:
                return self._all_done(Kind.E, microbatch)
            return self._there(Kind.F, stage - 1, stage, microbatch)
        if kind == Kind.W:
            return self._there(Kind.B, stage, stage, microbatch)
        own = self._there(Kind.F, stage, stage, microbatch)
        upstream_gradient = (
            self._all_done(self.met, microbatch)
            if stage == self.last
            else self._there(Kind.B, stage + 1, stage, microbatch)
        )
        return None if own is None or upstream_gradient is None else max(own, upstream_gradient)

    def _there(self, kind: Kind, stage: int, to: int, microbatch: int) -> float | None:
        """When what a stage made is on the rank of another; None where that is not known yet."""
        end = self.ends.get((kind, stage, microbatch))
        placement = self.schedule.placement
        return None if end is None else end + (self.costs.c if placement[stage] != placement[to] else 0.0)

    def _all_done(self, kind: Kind, microbatch: int) -> float | None:
        """When the ranks have met; 0 where they need not."""
        if kind not in self.kinds:
            return 0.0
        parts = self.parts.get((kind, microbatch), ())
        return max(parts) + self.link if len(parts) == self.schedule.ranks else None

    def _take(self, rank: int, now: float, group: tuple[Task, ...]) -> None:
        """Run tasks, and say what can be run when they are done."""
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
                    self._look(placement[0 if kind == Kind.E else self.last], max(parts) + self.link)
                    if kind == Kind.S:
                        self._release(Kind.T, microbatch, max(parts) + self.link)
                continue
            self.ends[Kind.B if kind == Kind.BW else kind, stage, microbatch] = end
            beside = stage + 1 if kind == Kind.F else stage - 1
            if kind != Kind.W and 0 <= beside <= self.last:
                self._look(placement[beside], end)
            if kind == Kind.F and stage == 0 and microbatch + _AHEAD < self.schedule.microbatches:
                self._release(Kind.E, microbatch + _AHEAD, now)
            if kind == Kind.F and stage == self.last:
                self._release(Kind.S, microbatch, end + self.link)
            if kind in (Kind.B, Kind.BW) and stage == 0:
                self._release(Kind.G, microbatch, end + self.link)
        self._look(rank, end)
