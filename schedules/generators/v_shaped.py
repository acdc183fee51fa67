"""Patterns on a V, DualPipeV and the ZB-V that `heuristics.py` starts from: rank r holds stages r and 2 p - 1 - r."""

from __future__ import annotations

from ..schedule import Kind, Schedule, Task, ordered, v_placement
from .counting import RankOrder


def zbv_by_hand(ranks: int, microbatches: int) -> Schedule:
    """ZB-V for f = b = w; needs at least 2 p - 1 microbatches. Source: arXiv 2401.10241, section 6.

    No idle time by span; peak p activations.
    """
    orders = [_zbv_rank(rank, ranks, microbatches) for rank in range(ranks)]
    return Schedule("zb-v", ranks, microbatches, v_placement(ranks), ordered(order.tasks for order in orders))


def _zbv_rank(rank: int, ranks: int, microbatches: int) -> RankOrder:
    order, down, up = RankOrder(), rank, 2 * ranks - 1 - rank
    for _ in range(2 * (ranks - rank) - 1):
        order.f(down)
    for _ in range(rank):
        order.f(up)
        order.f(down)
    for _ in range(ranks - rank):
        order.f(up)
        order.b(up)
        order.w(up)
    while order.done(Kind.F, up) < microbatches:
        if order.done(Kind.F, down) < microbatches:
            order.f(down)
        order.b(down)
        order.w(down)
        order.f(up)
        order.b(up)
        order.w(up)
    for _ in range(rank):
        order.b(down)
        order.b(up)
    for _ in range(ranks - rank):
        order.b(down)
        order.w(down)
    while order.delayed:
        order.w()
    return order


def dualpipe_v(ranks: int, microbatches: int) -> Schedule:
    """DualPipeV: forwards overlapped with backwards of other microbatches; needs at least 2 p microbatches.

    Idle time (p - 1)(fb + b + w - 3 w), where fb is an overlapped forward and full backward; peak p + 1/2 activations.
    Source: DeepSeek-V3 (arXiv 2412.19437, section 3.2.1), and its halved form in the repository DualPipe.
    """
    orders, pairs = [], set()
    for rank in range(ranks):
        order = _DualPipeV(rank, ranks)
        order.write(microbatches)
        orders.append(order.tasks)
        pairs.update(order.pairs)
    return Schedule("dualpipe-v", ranks, microbatches, v_placement(ranks), ordered(orders), frozenset(pairs))


class _DualPipeV(RankOrder):
    """The eight phases of one rank; a "late" backward delays its W."""

    def __init__(self, rank: int, ranks: int) -> None:
        super().__init__()
        self.rank, self.after, self.ranks = rank, ranks - 1 - rank, ranks
        self.down, self.up = rank, 2 * ranks - 1 - rank
        self.pairs: list[Task] = []

    def write(self, microbatches: int) -> None:
        """Write all tasks."""
        for _ in range(2 * self.after):
            self.f(self.down)
        for _ in range(self.rank + 1):
            self.f(self.down)
            self.f(self.up)
        for _ in range(self.after):
            self.b(self.up)
            self.w()
            self.f(self.up)
        self._steady(microbatches - 2 * self.ranks + self.rank + 1)
        for _ in range(self.after):
            self.bw(self.up)
            self._pair(self.up, self.down)
        self._turn_late()
        for _ in range(self.after):
            self.w()
            self.b(self.down)
        for _ in range(self.rank + 1):
            self.w()

    def _steady(self, rounds: int) -> None:
        for turn in range(rounds):
            if turn == 0 and self.after == 0:  # its first backward reads this forward
                self.f(self.down)
                self.bw(self.up)
            else:
                self._pair(self.down, self.up)
            self._pair(self.up, self.down)

    def _turn_late(self) -> None:
        """Backwards only; the second half of them delays W."""
        stages = [stage for _ in range(self.rank + 1) for stage in (self.up, self.down)]
        first_late = 2 * ((self.rank + 1) // 2) + (1 - self.rank % 2)
        for index, stage in enumerate(stages):
            (self.b if index >= first_late else self.bw)(stage)

    def _pair(self, forward: int, backward: int) -> None:
        self.f(forward)
        self.pairs.append(self.tasks[-1])
        self.bw(backward)
