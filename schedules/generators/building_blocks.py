"""V-Half and V-Min: one microbatch's tasks in fixed slots, repeated every six slots, compacted at both ends.

Source: Pipeline parallelism with controllable memory (arXiv 2405.15362), section 3. On each rank, F and B of both
chunks take four of six slots, and W the other two. The lifetime of a microbatch's activations decides the memory.
"""

from __future__ import annotations

import sys
from bisect import insort
from collections.abc import Callable, Iterator

from ..schedule import Kind, Schedule, Task, ordered, v_placement

_PERIOD = 6
"""Slots between two microbatches: F, B and W of two chunks."""

Offsets = Callable[[int, int], tuple[int, int, int, int]]
"""(rank, ranks) -> the first microbatch's slots of F down, F up, B up and B down."""


def v_half_offsets(rank: int, ranks: int) -> tuple[int, int, int, int]:
    """V-Half: activations live about half as long as in 1F1B."""
    late = 3 if ranks % 2 == 0 else 0
    return 2 * rank, 3 * ranks - rank - 2, 3 * ranks + late + 2 * rank - 1, 6 * ranks + late - rank - 2


def v_min_offsets(rank: int, ranks: int) -> tuple[int, int, int, int]:
    """V-Min: activations live about a third as long as in 1F1B."""
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
    return sorted(tasks, key=lambda entry: entry[:2])


def repeated(name: str, offsets: Offsets, ranks: int, microbatches: int) -> Schedule:
    """The uncompacted blocks, with each W in the first free slot."""
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
    """F and B without W; tasks outside the steady part move to the first slot possible.

    At most `room` forwards of a chunk wait for their B on a rank. Tasks in the first `steady` slots, and those after
    the last microbatch's start, may move; the others keep their slots.
    """
    grid = [_RankSlots(room) for _ in range(ranks)]
    ends: dict[Task, int] = {}
    for slot, rank, task in slot_tasks(offsets, ranks, microbatches):
        earliest = max((ends[need] for need in _dependencies(task, 2 * ranks)), default=0)
        if steady <= slot < _PERIOD * microbatches:
            earliest = max(earliest, slot)
        ends[task] = grid[rank].put(task, earliest, slot) + 1
    return Schedule(name, ranks, microbatches, v_placement(ranks), ordered(slots.tasks() for slots in grid))


def most_waiting(offsets: Offsets, ranks: int, microbatches: int) -> int:
    """The most forwards of a chunk that wait for their B on one rank, in the uncompacted blocks."""
    waiting, most = [0] * ranks, 0
    for _, rank, task in slot_tasks(offsets, ranks, microbatches):
        waiting[rank] += 1 if task.kind == Kind.F else -1
        most = max(most, waiting[rank])
    return most


def _dependencies(task: Task, stages: int) -> Iterator[Task]:
    kind, stage, microbatch = task
    if kind == Kind.B:
        yield Task(Kind.F, stage, microbatch)
        if stage + 1 < stages:
            yield Task(Kind.B, stage + 1, microbatch)
    elif stage:
        yield Task(Kind.F, stage - 1, microbatch)


class _RankSlots:
    """The slots of one rank, and how many forwards wait for their B after each."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tasks_by_slot: dict[int, Task] = {}
        self.changes: list[tuple[int, int]] = []
        """(first slot, +1 or -1) for every forward and every B."""
        self.waiting = 0

    def put(self, task: Task, earliest: int, latest: int) -> int:
        """Take the first free slot from `earliest`; a forward also waits for room, but not past `latest`."""
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
        """The first slot from which there is room for one more forward; sys.maxsize if there is none."""
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
