"""Place the W tasks in an order of F and B: where a rank would wait, and where memory is needed."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from itertools import pairwise
from math import inf

from ..costs import Costs
from ..schedule import Kind, Schedule, Task, ordered

_TOLERANCE = 1e-9


def weave(schedule: Schedule, costs: Costs, cap: float, gap: float = 1.0) -> Schedule | None:
    """The schedule with F and B in the same order and W placed anew; None if it does not fit `cap` or cannot run.

    A W fills a wait of at least `gap` (0 to 1) of the W's time, or of unknown length.
    """
    run = _Weaver(schedule, costs, cap, gap)
    while run.events:
        now, rank = heappop(run.events)
        if now >= run.free[rank] - _TOLERANCE:
            run.visit(rank, now)
    if any(position < len(tasks) for position, tasks in zip(run.positions, run.tasks, strict=True)):
        return None
    for order, delayed in zip(run.orders, run.delayed, strict=True):
        order.extend(Task(Kind.W, *task) for task in delayed)
    return Schedule(schedule.name, schedule.ranks, schedule.microbatches, schedule.placement, ordered(run.orders))


class _Weaver:
    """The state of all ranks during scheduling."""

    def __init__(self, schedule: Schedule, costs: Costs, cap: float, gap: float) -> None:
        placement = schedule.placement
        self.placement, self.last = placement, len(placement) - 1
        self.tasks = [[task for task in order if task.kind != Kind.W] for order in schedule.order]
        self.room, self.gap, self.kept = cap * schedule.chunks, gap, costs.kept
        self.durations = costs.durations(schedule.chunks)
        self.delay = [costs.c if a != b else 0.0 for a, b in pairwise(placement)]
        self.positions = [0] * schedule.ranks
        self.free = [0.0] * schedule.ranks
        self.activations = [0.0] * schedule.ranks
        self.delayed: list[deque[tuple[int, int]]] = [deque() for _ in self.tasks]
        self.orders: list[list[Task]] = [[] for _ in self.tasks]
        self.forwards: list[list[float]] = [[inf] * schedule.microbatches for _ in placement]
        self.backwards: list[list[float]] = [[inf] * schedule.microbatches for _ in placement]
        self.events = [(0.0, rank) for rank in range(schedule.ranks)]

    def visit(self, rank: int, now: float) -> None:
        """Run a rank's next task, or a W, or wait."""
        ready, task = inf, None
        if self.positions[rank] < len(self.tasks[rank]):
            task = self.tasks[rank][self.positions[rank]]
            ready = self._ready(task)
        fits = task is None or task.kind != Kind.F or self.activations[rank] + 1 <= self.room + _TOLERANCE
        if task is not None and fits and ready <= now + _TOLERANCE:
            self.positions[rank] += 1
            self._take(rank, now, task)
        elif self.delayed[rank] and (not fits or ready - now >= self.gap * self.durations[Kind.W] - _TOLERANCE):
            self._take(rank, now, Task(Kind.W, *self.delayed[rank].popleft()))
        elif fits and ready < inf:
            heappush(self.events, (max(now, ready), rank))

    def _ready(self, task: Task) -> float:
        kind, stage, microbatch = task
        if kind == Kind.F:
            return 0.0 if stage == 0 else self.forwards[stage - 1][microbatch] + self.delay[stage - 1]
        own = self.forwards[stage][microbatch]
        if stage == self.last:
            return own
        return max(own, self.backwards[stage + 1][microbatch] + self.delay[stage])

    def _take(self, rank: int, now: float, task: Task) -> None:
        kind, stage, microbatch = task
        end = self.free[rank] = now + self.durations[kind]
        self.orders[rank].append(task)
        heappush(self.events, (end, rank))
        if kind == Kind.W:
            self.activations[rank] -= self.kept
        elif kind == Kind.F:
            self.activations[rank] += 1
            self.forwards[stage][microbatch] = end
            self._wake(stage + 1, end)
        else:
            self.activations[rank] -= 1 if kind == Kind.BW else 1 - self.kept
            self.backwards[stage][microbatch] = end
            if kind == Kind.B:
                self.delayed[rank].append((stage, microbatch))
            self._wake(stage - 1, end)

    def _wake(self, stage: int, end: float) -> None:
        if 0 <= stage <= self.last:
            rank = self.placement[stage]
            heappush(self.events, (max(end, self.free[rank]), rank))
