"""Relative costs of changing a tensor's placement on one axis: they encode a preference and predict no time.

The unit is bytes that a rank sends (`communication.py`). Where a rank sends nothing, a small cost per byte of tensor
keeps the order of preference: keep placements; move activations, never weights; complete partial sums by an all-reduce,
or by a reduce-scatter where the plan shards activations; shard a replicated operand only to match a sharded one. The
constants are ours: chosen to keep this order, not measured (docs/adr/0004).
"""

from __future__ import annotations

from math import inf
from typing import Protocol

from ..ir.placement import AxisPlacement, Partial, Replicate, Shard
from .communication import sent_bytes

CUT = 1e-3
"""Of sharding a replicated tensor, per byte: nothing is sent, but a later op may need an all-gather."""
AS_PARTIAL = 2e-3
"""Of making a replicated broadcast operand (a bias) a term of a partial sum, per byte."""
DEFERRED = 0.999
"""The cost of a delayed reduction, as a share of an immediate one: of two equal ones the later is better."""
WEIGHT = 1e3
"""The cost of moving a weight, in moves of an activation of the same size."""
MIXES_MICROBATCHES = 1e30
"""The cost of a move over the microbatch axis that is possible only after all microbatches, or not at all."""
EVERY_MICROBATCH = 1e3
"""The cost of a reduction in every microbatch, in reductions after the last one."""


class Movable(Protocol):
    """What the cost of moving a tensor depends on."""

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


def microbatch_move_cost(
    nbytes: int, source: AxisPlacement, target: AxisPlacement, *, early: bool, free: bool
) -> float:
    """The cost of bringing a tensor from one placement to another on the microbatch axis, which sends nothing.

    `early`: the tensor's sum is known before any microbatch runs. `free`: each rank can draw its elements.
    """
    match source, target:
        case _ if source == target:
            return 0.0
        case Replicate(), Shard():
            return CUT * nbytes
        case Replicate(), Partial():
            return AS_PARTIAL * nbytes
        case Partial(), Replicate() if early:
            return 2.0 * nbytes
        case Shard(), Replicate() | Shard() if free:
            return CUT * nbytes
        case _:
            return MIXES_MICROBATCHES
