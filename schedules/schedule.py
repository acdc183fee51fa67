"""A schedule: which rank runs which task of which microbatch in which order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from ..diagnostics import Span


class Kind(IntEnum):
    """What a task does with a microbatch on a stage."""

    F = 0
    """The forward."""
    B = 1
    """The gradient of the stage's input."""
    W = 2
    """The gradient of the stage's weights; any time after B."""
    BW = 3
    """The full backward: B and W in one."""
    S = 4
    """Every rank's part of the output's work, up to where the ranks meet: logits of its part of the vocabulary."""
    T = 5
    """What every rank has left to do of it then: gradients."""
    E = 6
    """Every rank's part of looking up embeddings."""
    G = 7
    """Every rank's part of their gradient."""

    @property
    def is_shared(self) -> bool:
        """Whether every rank does a part of it, so that it belongs to no stage."""
        return self >= Kind.S


class Task(NamedTuple):
    """One kind of work on one stage for one microbatch."""

    kind: Kind
    stage: int
    """The virtual stage, counted along the model (0 <= stage < ranks * chunks); of a shared task the rank."""
    microbatch: int

    def __str__(self) -> str:
        if self.kind.is_shared:
            return f"{self.kind.name} of microbatch {self.microbatch} on rank {self.stage}"
        return f"{self.kind.name} of microbatch {self.microbatch} on stage {self.stage}"


Order = tuple[tuple[Task, ...], ...]
"""The tasks of each rank, in the order in which it runs them."""


def loop_placement(ranks: int, chunks: int = 1) -> tuple[int, ...]:
    """The rank of each virtual stage where stages go round the ranks: stage s is on rank s mod ranks.

    >>> loop_placement(2, 2)
    (0, 1, 0, 1)
    """
    return tuple(stage % ranks for stage in range(ranks * chunks))


def v_placement(ranks: int) -> tuple[int, ...]:
    """The rank of each of 2 * ranks virtual stages that go down the ranks and up again, as a V.

    >>> v_placement(3)
    (0, 1, 2, 2, 1, 0)
    """
    return (*range(ranks), *reversed(range(ranks)))


@dataclass(frozen=True)
class Schedule:
    """The order of all tasks of one step. It is a claim: `prove` says whether it can run."""

    name: str
    ranks: int
    microbatches: int
    placement: tuple[int, ...]
    """The rank that holds each virtual stage; every rank holds the same number of them."""
    order: Order
    overlapped: frozenset[Task] = frozenset()
    """Forwards whose operations are meant to be interleaved with those of the backward that stands behind them."""
    barriers: int = 0
    """How often all ranks meet between a microbatch's last F and its first B: never, after S, or after S and T."""
    spans: tuple[tuple[Span, ...], ...] = field(default=(), compare=False, repr=False)
    """Where each task was written, beside `order`; empty for a schedule that was generated."""

    @property
    def stages(self) -> int:
        """The number of virtual stages."""
        return len(self.placement)

    @property
    def chunks(self) -> int:
        """How many virtual stages a rank holds."""
        return len(self.placement) // self.ranks

    @property
    def has_backward(self) -> bool:
        """Whether any task is a backward; a schedule for inference has none."""
        return any(Kind.B <= task.kind <= Kind.BW for tasks in self.order for task in tasks)

    @property
    def shared(self) -> frozenset[Kind]:
        """The kinds of tasks that every rank has for every microbatch."""
        return frozenset(task.kind for tasks in self.order[:1] for task in tasks if task.kind.is_shared)

    def chunk(self, stage: int) -> int:
        """Which of its rank's virtual stages this is, counted along the model."""
        return self.placement[:stage].count(self.placement[stage])

    def span(self, rank: int, position: int) -> Span | None:
        """Where the task at a position of a rank's order was written."""
        return self.spans[rank][position] if self.spans else None


def ordered(orders: Iterable[Iterable[Task]]) -> Order:
    """The order of all ranks as a value."""
    return tuple(tuple(tasks) for tasks in orders)
