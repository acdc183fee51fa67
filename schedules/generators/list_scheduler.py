"""List scheduling for any placement, times and memory: each rank takes the best task that it can start.

Ranks are visited in order of time. A rank takes a ready B or F by a `Policy`, and a W if nothing else is ready or
memory is needed. A forward is taken only if its activations fit and every later chunk of the rank keeps room for one
microbatch. Microbatches go in order, so the oldest can always proceed: there is no deadlock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from heapq import heappop, heappush
from itertools import pairwise
from math import inf

from ..costs import Costs
from ..error import ScheduleCode, ScheduleError
from ..schedule import Kind, Schedule, Task, ordered

_TOLERANCE = 1e-9


class First(StrEnum):
    """The task that a rank takes if a forward and a backward are both ready."""

    BACKWARD = "backward"
    FORWARD = "forward"
    OTHER = "other"
    """The kind that the rank did not take last."""


@dataclass(frozen=True)
class Policy:
    """How a rank chooses its next task."""

    first: First = First.BACKWARD
    late_backwards: bool = True
    """Prefer the ready backward of the later stage, else of the earlier."""
    late_forwards: bool = True
    """Prefer the ready forward of the later stage, else of the earlier."""
    gap: float = 1.0
    """A W fills a wait of at least this share of the W's time (0 to 1)."""
    patience: float = 0.0
    """A rank waits for the preferred task if it is ready within this share of the other's time (0 to 1)."""
    splits: bool = True
    """Whether B and W are separate tasks."""


def list_schedule(
    name: str, placement: tuple[int, ...], microbatches: int, costs: Costs, cap: float, policy: Policy
) -> Schedule:
    """Schedule by a policy; `cap` as in `prove`. Raises E0441 if a rank cannot hold one microbatch."""
    ranks = max(placement) + 1
    chunks = len(placement) // ranks
    if cap < 1 - _TOLERANCE:
        message = f'"{name}" needs memory for the activations of one microbatch; the cap is {cap:g}'
        raise ScheduleError(ScheduleCode.NOT_DEFINED, message, help="give a memory cap of at least 1")
    run = _ListScheduler(placement, ranks, microbatches, costs, int(cap * chunks + _TOLERANCE), policy)
    run.all_tasks()
    return Schedule(name, ranks, microbatches, placement, ordered(run.orders))


class _ListScheduler:
    """The state of all ranks during scheduling."""

    def __init__(
        self, placement: tuple[int, ...], ranks: int, microbatches: int, costs: Costs, room: float, policy: Policy
    ) -> None:
        self.placement, self.count, self.policy = placement, microbatches, policy
        self.last = len(placement) - 1
        self.durations = costs.durations(len(placement) // ranks)
        self.kept = costs.kept
        self.room = room
        self.stages = [[stage for stage, owner in enumerate(placement) if owner == rank] for rank in range(ranks)]
        chunks = len(placement) // ranks
        self.reserve = [chunks - 1 - placement[:stage].count(owner) for stage, owner in enumerate(placement)]
        self.delay = [costs.c if a != b else 0.0 for a, b in pairwise(placement)]
        self.free = [0.0] * ranks
        self.activations = [0.0] * ranks
        self.latest = [Kind.W] * ranks
        self.delayed: list[deque[tuple[int, int]]] = [deque() for _ in range(ranks)]
        self.orders: list[list[Task]] = [[] for _ in range(ranks)]
        self.forwards: list[list[float]] = [[] for _ in placement]
        self.backwards: list[list[float]] = [[] for _ in placement]

    def all_tasks(self) -> None:
        """Schedule every task; an event is a time at which a rank may take one."""
        self.events = [(0.0, rank) for rank in range(len(self.free))]
        while self.events:
            now, rank = heappop(self.events)
            if now >= self.free[rank] - _TOLERANCE:
                self._visit(rank, now)

    def _visit(self, rank: int, now: float) -> None:
        soonest, chosen = inf, None
        backward, forward = self._backward(rank, now), self._forward(rank, now)
        for ready, task in (backward, forward):
            if task is not None and ready < soonest:
                soonest = ready
        if soonest <= now + _TOLERANCE:
            chosen = self._choose(rank, now, backward, forward)
        if chosen is not None:
            self._take(rank, now, chosen)
        elif self.delayed[rank] and soonest - now >= self.policy.gap * self.durations[Kind.W] - _TOLERANCE:
            self._take(rank, now, Task(Kind.W, *self.delayed[rank].popleft()))
        elif soonest < inf:
            ahead = [ready for ready, task in (backward, forward) if task is not None and ready > now + _TOLERANCE]
            heappush(self.events, (min(ahead), rank))

    def _choose(
        self, rank: int, now: float, backward: tuple[float, Task | None], forward: tuple[float, Task | None]
    ) -> Task | None:
        """The preferred ready candidate; None to wait for one that is ready soon."""
        first = self.policy.first
        if first == First.OTHER:
            first = First.FORWARD if self.latest[rank] != Kind.F else First.BACKWARD
        preferred, fallback = (backward, forward) if first == First.BACKWARD else (forward, backward)
        if preferred[1] is None or preferred[0] <= now + _TOLERANCE:
            return preferred[1] or fallback[1]
        assert fallback[1] is not None
        wait = self.policy.patience * self.durations[fallback[1].kind]
        return None if preferred[0] - now < wait - _TOLERANCE else fallback[1]

    def _backward(self, rank: int, now: float) -> tuple[float, Task | None]:
        """The rank's best backward, and when it can start; (inf, None) if no start is known yet."""
        candidates: list[tuple[float, int]] = []
        for stage in self.stages[rank]:
            microbatch = len(self.backwards[stage])
            if microbatch < len(self.forwards[stage]):
                own = self.forwards[stage][microbatch]
                if stage == self.last:
                    candidates.append((own, stage))
                elif microbatch < len(self.backwards[stage + 1]):
                    candidates.append((max(own, self.backwards[stage + 1][microbatch] + self.delay[stage]), stage))
        kind = Kind.B if self.policy.splits else Kind.BW
        return self._best(candidates, now, self.policy.late_backwards, kind)

    def _forward(self, rank: int, now: float) -> tuple[float, Task | None]:
        """The rank's best forward that fits in memory, and when it can start."""
        candidates: list[tuple[float, int]] = []
        for stage in self.stages[rank]:
            microbatch = len(self.forwards[stage])
            if microbatch == self.count or self.activations[rank] + 1 + self.reserve[stage] > self.room + _TOLERANCE:
                continue
            if stage == 0:
                candidates.append((0.0, stage))
            elif microbatch < len(self.forwards[stage - 1]):
                candidates.append((self.forwards[stage - 1][microbatch] + self.delay[stage - 1], stage))
        return self._best(candidates, now, self.policy.late_forwards, Kind.F)

    def _best(
        self, candidates: list[tuple[float, int]], now: float, late: bool, kind: Kind
    ) -> tuple[float, Task | None]:
        if not candidates:
            return inf, None
        ready = [candidate for candidate in candidates if candidate[0] <= now + _TOLERANCE]
        if ready:
            time, stage = ready[-1] if late else ready[0]
        else:
            time, stage = min(candidates)
        done = self.backwards if kind else self.forwards
        return time, Task(kind, stage, len(done[stage]))

    def _take(self, rank: int, now: float, task: Task) -> None:
        """Run a task, and wake the rank that reads its result."""
        kind, stage, microbatch = task
        end = now + self.durations[kind]
        self.free[rank] = end
        self.orders[rank].append(task)
        heappush(self.events, (end, rank))
        if kind == Kind.W:
            self.activations[rank] -= self.kept
            return
        self.latest[rank] = kind
        if kind == Kind.F:
            self.activations[rank] += 1
            self.forwards[stage].append(end)
            self._wake(stage + 1, stage, end)
            return
        self.backwards[stage].append(end)
        self.activations[rank] -= 1 if kind == Kind.BW else 1 - self.kept
        if kind == Kind.B:
            self.delayed[rank].append((stage, microbatch))
        self._wake(stage - 1, min(stage - 1, stage), end)

    def _wake(self, stage: int, link: int, end: float) -> None:
        if 0 <= stage <= self.last:
            rank = self.placement[stage]
            heappush(self.events, (max(end + self.delay[link], self.free[rank]), rank))
