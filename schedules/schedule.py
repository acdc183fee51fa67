"""A pipeline schedule: the order of tasks on every rank."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from ..diagnostics import Span


class Kind(IntEnum):
    """The kind of a task; E, G, S and T are shared: every rank runs its part."""

    F = 0
    """The forward."""
    B = 1
    """The input gradient."""
    W = 2
    """The weight gradient; any time after B."""
    BW = 3
    """The full backward: B and W in one."""
    S = 4
    """Every rank's part of the output layer before the barrier: the logits of its part of the vocabulary."""
    T = 5
    """Every rank's part of the output layer after the barrier: its gradients."""
    E = 6
    """Every rank's part of the embedding lookup."""
    G = 7
    """Every rank's part of the embedding's gradient."""

    @property
    def is_shared(self) -> bool:
        """Whether every rank runs a part of it, so that it belongs to no stage."""
        return self >= Kind.S


class Task(NamedTuple):
    """One kind of work for one microbatch on one stage."""

    kind: Kind
    stage: int
    """The virtual stage in model order (0 <= stage < ranks * chunks); for a shared task, the rank."""
    microbatch: int

    def __str__(self) -> str:
        if self.kind.is_shared:
            return f"{self.kind.name} of microbatch {self.microbatch} on rank {self.stage}"
        return f"{self.kind.name} of microbatch {self.microbatch} on stage {self.stage}"


Order = tuple[tuple[Task, ...], ...]
"""The tasks of each rank, in the order in which it runs them."""


def loop_placement(ranks: int, chunks: int = 1) -> tuple[int, ...]:
    """The rank of each virtual stage in a round-robin placement: s mod ranks.

    >>> loop_placement(2, 2)
    (0, 1, 0, 1)
    """
    return tuple(stage % ranks for stage in range(ranks * chunks))


def v_placement(ranks: int) -> tuple[int, ...]:
    """The rank of each of 2 * ranks virtual stages in a V: down the ranks, then up.

    >>> v_placement(3)
    (0, 1, 2, 2, 1, 0)
    """
    return (*range(ranks), *reversed(range(ranks)))


@dataclass(frozen=True)
class Schedule:
    """The order of all tasks of one step. It may be wrong: `prove` tells whether it can run."""

    name: str
    ranks: int
    microbatches: int
    placement: tuple[int, ...]
    """The rank that holds each virtual stage; every rank holds the same number of them."""
    order: Order
    overlapped: frozenset[Task] = frozenset()
    """Forwards whose operations are interleaved with those of the backward that follows them."""
    barriers: int = 0
    """Barriers of all ranks between a microbatch's last F and first B: 0, 1 (after S) or 2 (after S and T)."""
    spans: tuple[tuple[Span, ...], ...] = field(default=(), compare=False, repr=False)
    """The source span of each task, parallel to `order`; empty for a generated schedule."""

    @property
    def stages(self) -> int:
        """The number of virtual stages."""
        return len(self.placement)

    @property
    def chunks(self) -> int:
        """The number of virtual stages per rank."""
        return len(self.placement) // self.ranks

    @property
    def has_backward(self) -> bool:
        """Whether any task is a backward; a schedule for inference has none."""
        return any(Kind.B <= task.kind <= Kind.BW for tasks in self.order for task in tasks)

    @property
    def shared(self) -> frozenset[Kind]:
        """The kinds of shared tasks in the schedule."""
        return frozenset(task.kind for tasks in self.order[:1] for task in tasks if task.kind.is_shared)

    def chunk(self, stage: int) -> int:
        """The number of a virtual stage among those of its rank, in model order."""
        return self.placement[:stage].count(self.placement[stage])

    def span(self, rank: int, position: int) -> Span | None:
        """The source span of the task at a position of a rank's order."""
        return self.spans[rank][position] if self.spans else None


def ordered(orders: Iterable[Iterable[Task]]) -> Order:
    """The order as nested tuples."""
    return tuple(tuple(tasks) for tasks in orders)
