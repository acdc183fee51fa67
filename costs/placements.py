"""Relative costs of changing a tensor's placement on one axis, which encode what the propagation prefers.

The unit is bytes that a rank sends (`communication.py`). Where nothing is sent, a small price per byte of the tensor
keeps the order of preference: leave things where they are; move activations, never weights; finish partial sums by an
all-reduce, or by a reduce-scatter where the plan shards activations; cut a replicated operand only to meet a sharded
one. The prices are ours: any numbers that keep this order give the same placements (docs/adr/0004).
"""

from __future__ import annotations

from math import inf
from typing import Protocol

from ..ir.placement import AxisPlacement, Partial, Replicate, Shard
from .communication import sent_bytes

CUT = 1e-3
"""Of cutting a replicated tensor, per byte: nothing moves, but what follows may have to be gathered."""
AS_PARTIAL = 2e-3
"""Of making a replicated broadcast operand (a bias) a term of a partial sum, per byte."""
DEFERRED = 0.999
"""What a reduction put off costs of one made now: where they are the same size, the later one may meet its user."""
WEIGHT = 1e3
"""How many times dearer it is to move a weight than an activation of the same size."""


class Movable(Protocol):
    """What a tensor's move costs depends on."""

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""

    @property
    def is_weight(self) -> bool:
        """Whether it is a parameter, or follows from one alone."""

    @property
    def is_viewed(self) -> bool:
        """Whether the op that takes it moves elements about, and computes nothing."""

    @property
    def may_be_partial(self) -> bool:
        """Whether one rank may add all of it to a partial sum while the others add zeros."""

    @property
    def scatter_dims(self) -> tuple[tuple[str, int], ...]:
        """(axis, dim): where the plan wants a partial value of this shape reduce-scattered."""


def move_cost(moved: Movable, axis: str, ranks: int, source: AxisPlacement, target: AxisPlacement) -> float:
    """Bytes each rank sends to bring a tensor from one placement to another on an axis of ranks; inf where impossible.

    What only views a tensor does not exchange the sharded dim for another: it would decide, for the sake of no
    computation, what its users compute on.
    """
    if source == target:
        return 0.0
    ranks = max(ranks, 2)  # one rank decides as two would, so that it agrees with other axes
    gathered = sent_bytes("all_gather", moved.nbytes, ranks)
    weight = WEIGHT if moved.is_weight else 1.0
    match source, target:
        case Replicate(), Shard():
            return CUT * moved.nbytes
        case Replicate(), Partial():
            return AS_PARTIAL * moved.nbytes if moved.may_be_partial else inf
        case Shard(), Replicate():
            return weight * gathered
        case Shard(), Shard():
            exchanged = gathered if moved.is_viewed else gathered / ranks
            return weight * exchanged + CUT * moved.nbytes
        case Partial(), Replicate():
            return weight * sent_bytes("all_reduce", moved.nbytes, ranks)
        case Partial(), Shard(dim):
            if (axis, dim) in moved.scatter_dims:
                return weight * sent_bytes("reduce_scatter", moved.nbytes, ranks)
            return weight * (sent_bytes("all_reduce", moved.nbytes, ranks) + CUT * moved.nbytes)
        case _:
            return inf
