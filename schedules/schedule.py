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


class Task(NamedTuple):
    """One kind of work on one stage for one microbatch."""

    kind: Kind
    stage: int
    """The virtual stage, counted along the model (0 <= stage < ranks * chunks)."""
    microbatch: int

    def __str__(self) -> str:
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
        return any(task.kind != Kind.F for tasks in self.order for task in tasks)

    def chunk(self, stage: int) -> int:
        """Which of its rank's virtual stages this is, counted along the model."""
        return self.placement[:stage].count(self.placement[stage])

    def span(self, rank: int, position: int) -> Span | None:
        """Where the task at a position of a rank's order was written."""
        return self.spans[rank][position] if self.spans else None


def ordered(orders: Iterable[Iterable[Task]]) -> Order:
    """The order of all ranks as a value."""
    return tuple(tuple(tasks) for tasks in orders)
