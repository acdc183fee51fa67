"""Schedules with one stage per rank: GPipe, 1F1B, ZB-H1 and ZB-H2."""

from __future__ import annotations

from collections.abc import Callable

from ..schedule import Kind, Schedule, loop_placement, ordered
from .counting import RankOrder


def forward_only(ranks: int, microbatches: int, chunks: int = 1) -> Schedule:
    """Forwards only, for inference. A rank runs each chunk for `ranks` microbatches, then the next chunk."""
    placement = loop_placement(ranks, chunks)
    orders = []
    for rank in range(ranks):
        order = RankOrder()
        for first in range(0, microbatches, ranks):
            for chunk in range(chunks):
                for _ in range(first, min(first + ranks, microbatches)):
                    order.f(rank + chunk * ranks)
        orders.append(order)
    return Schedule("forward-only", ranks, microbatches, placement, ordered(order.tasks for order in orders))


def fill_drain(ranks: int, microbatches: int) -> Schedule:
    """All forwards, then all backwards. Source: GPipe (arXiv 1811.06965), section 2.3.

    Bubble by makespan (p - 1) / (m + p - 1); peak m activations.
    """

    def rank_order(rank: int, order: RankOrder) -> None:
        for _ in range(microbatches):
            order.f(rank)
        for _ in range(microbatches):
            order.bw(rank)

    return _one_stage_per_rank("gpipe", ranks, microbatches, rank_order)


def one_f_one_b(ranks: int, microbatches: int) -> Schedule:
    """Forwards until the first backward can come, then one of each. Source: PipeDream-flush (arXiv 2006.09503).

    Idle time (p - 1)(f + b + w); peak min(p, m) activations, on the first rank.
    """

    def rank_order(rank: int, order: RankOrder) -> None:
        for _ in range(min(ranks - 1 - rank, microbatches)):
            order.f(rank)
        for _ in range(microbatches):
            if order.done(Kind.F, rank) < microbatches:
                order.f(rank)
            order.bw(rank)

    return _one_stage_per_rank("1f1b", ranks, microbatches, rank_order)


def zb_h1(ranks: int, microbatches: int) -> Schedule:
    """1F1B with W delayed by `rank` microbatches. Source: arXiv 2401.10241, section 2.2.

    Idle time (p - 1)(f + b - w) if f = b = w; peak p activations.
    """
    return _delayed_w("zb-h1", ranks, microbatches, lambda rank: (ranks - rank, rank))


def zb_h2(ranks: int, microbatches: int) -> Schedule:
    """As many warmup forwards as it takes that no rank waits for the first backward. Source: as ZB-H1.

    Idle time by span (p - 1)(f + b - 2 w) if f = b = w; peak 2 p - 1 activations.
    """
    return _delayed_w("zb-h2", ranks, microbatches, lambda rank: (2 * (ranks - rank) - 1, 2 * rank))


def _delayed_w(name: str, ranks: int, microbatches: int, counts: Callable[[int], tuple[int, int]]) -> Schedule:
    """1F1B with delayed W; `counts` gives for a rank the forwards before its first B and the number of delayed W."""

    def rank_order(rank: int, order: RankOrder) -> None:
        before, late = counts(rank)
        for _ in range(min(before, microbatches)):
            order.f(rank)
        for _ in range(microbatches):
            order.b(rank)
            if order.delayed > late:
                order.w()
            if order.done(Kind.F, rank) < microbatches:
                order.f(rank)
        while order.delayed:
            order.w()

    return _one_stage_per_rank(name, ranks, microbatches, rank_order)


def _one_stage_per_rank(
    name: str, ranks: int, microbatches: int, rank_order: Callable[[int, RankOrder], None]
) -> Schedule:
    orders = [RankOrder() for _ in range(ranks)]
    for rank, order in enumerate(orders):
        rank_order(rank, order)
    return Schedule(name, ranks, microbatches, loop_placement(ranks), ordered(order.tasks for order in orders))
