"""V-Half and V-Min: one microbatch's tasks at fixed slots, repeated every six slots, then squeezed at both ends.

Source: Pipeline parallelism with controllable memory (arXiv 2405.15362), section 3: on each rank F and B of both
chunks take four of six slots, W the two others; how long a microbatch's activations live decides the memory.
"""

from __future__ import annotations

import sys
from bisect import insort
from collections.abc import Callable, Iterator

from ..schedule import Kind, Schedule, Task, ordered, v_placement

_PERIOD = 6
"""Slots from one microbatch to the next: F, B and W of two chunks."""

Offsets = Callable[[int, int], tuple[int, int, int, int]]
"""(rank, ranks) to the slots of F down, F up, B up and B down of the first microbatch."""


def v_half_offsets(rank: int, ranks: int) -> tuple[int, int, int, int]:
    """Of V-Half: activations live for about half as long as in 1F1B."""
    late = 3 if ranks % 2 == 0 else 0
    return 2 * rank, 3 * ranks - rank - 2, 3 * ranks + late + 2 * rank - 1, 6 * ranks + late - rank - 2


def v_min_offsets(rank: int, ranks: int) -> tuple[int, int, int, int]:
    """Of V-Min: for about a third."""
    late = 2 if ranks % 3 == 0 else 0
    return rank, 2 * ranks - rank - 1, 2 * ranks + late + rank, 4 * ranks + late - rank - 1


def slot_tasks(offsets: Offsets, ranks: int, microbatches: int) -> list[tuple[int, int, Task]]:
    """(slot, rank, task) of every F and B, in the order of slots."""
    tasks: list[tuple[int, int, Task]] = []
    for rank in range(ranks):
        down, up = rank, 2 * ranks - 1 - rank
        kinds = ((Kind.F, down), (Kind.F, up), (Kind.B, up), (Kind.B, down))
        for slot, (kind, stage) in zip(offsets(rank, ranks), kinds, strict=True):
            tasks.extend(
                (slot + _PERIOD * microbatch, rank, Task(kind, stage, microbatch)) for microbatch in range(microbatches)
            )
    return sorted(tasks, key=lambda microbatch: (microbatch[0], microbatch[1]))


def repeated(name: str, offsets: Offsets, ranks: int, microbatches: int) -> Schedule:
    """The blocks as they are, each W in the first slot that is free."""
    orders: list[list[Task]] = [[] for _ in range(ranks)]
    waiting: list[list[Task]] = [[] for _ in range(ranks)]
    last_slot = [-1] * ranks
    for slot, rank, task in slot_tasks(offsets, ranks, microbatches):
        free_slots = slot - last_slot[rank] - 1
        orders[rank].extend(waiting[rank][:free_slots])
        del waiting[rank][:free_slots]
        orders[rank].append(task)
        last_slot[rank] = slot
        if task.kind == Kind.B:
            waiting[rank].append(task._replace(kind=Kind.W))
    for order, delayed in zip(orders, waiting, strict=True):
        order.extend(delayed)
    return Schedule(name, ranks, microbatches, v_placement(ranks), ordered(orders))


def squeezed(name: str, offsets: Offsets, ranks: int, microbatches: int, room: int, steady: int) -> Schedule:
    """F and B, without W, where those outside the steady part go to the first slot that they can have.

    `room` is how many forwards of a chunk may wait for their B on a rank. Tasks of the first `steady` slots, and those
    behind the last microbatch's start, may move; the others keep their slots.
    """
    grid = [_Row(room) for _ in range(ranks)]
    ends: dict[Task, int] = {}
    for slot, rank, task in slot_tasks(offsets, ranks, microbatches):
        earliest = max((ends[need] for need in _needs(task, 2 * ranks)), default=0)
        if steady <= slot < _PERIOD * microbatches:
            earliest = max(earliest, slot)
        ends[task] = grid[rank].put(task, earliest, slot) + 1
    return Schedule(name, ranks, microbatches, v_placement(ranks), ordered(slots.tasks() for slots in grid))


def most_waiting(offsets: Offsets, ranks: int, microbatches: int) -> int:
    """How many forwards of a chunk wait for their B on one rank, at most, in the blocks as they are."""
    waiting, most = [0] * ranks, 0
    for _, rank, task in slot_tasks(offsets, ranks, microbatches):
        waiting[rank] += 1 if task.kind == Kind.F else -1
        most = max(most, waiting[rank])
    return most


def _needs(task: Task, stages: int) -> Iterator[Task]:
    kind, stage, microbatch = task
    if kind == Kind.B:
        yield Task(Kind.F, stage, microbatch)
        if stage + 1 < stages:
            yield Task(Kind.B, stage + 1, microbatch)
    elif stage:
        yield Task(Kind.F, stage - 1, microbatch)


class _Row:
    """The slots of one rank, and what waits on it after each."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tasks_by_slot: dict[int, Task] = {}
        self.changes: list[tuple[int, int]] = []
        """(first slot, +1 or -1) of every forward put and every B done."""
        self.waiting = 0

    def put(self, task: Task, earliest: int, latest: int) -> int:
        """Take the first free slot from `earliest`; a forward also waits for room, `latest` at the latest."""
        slot = earliest
        if task.kind == Kind.F:
            slot = max(slot, min(self._first_slot_with_room(), latest))
        while slot in self.tasks_by_slot:
            slot += 1
        self.tasks_by_slot[slot] = task
        change = (slot, 1) if task.kind == Kind.F else (slot + 1, -1)
        insort(self.changes, change)
        self.waiting += change[1]
        return slot

    def _first_slot_with_room(self) -> int:
        """The first slot from which on there is room for one more forward; one behind all slots where there is none."""
        waiting = self.waiting
        if waiting >= self.room:
            return sys.maxsize
        for slot, change in reversed(self.changes):
            waiting -= change
            if waiting >= self.room:
                return slot
        return 0

    def tasks(self) -> list[Task]:
        """The tasks in the order of slots."""
        return [self.tasks_by_slot[slot] for slot in sorted(self.tasks_by_slot)]
