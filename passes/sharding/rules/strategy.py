"""What a sharding rule says: on one mesh axis, these input placements give these output placements.

A row holds for an axis of any size, with two riders. A `Tie` refuses the part counts for which chunk boundaries of two
dims would not fall together. A fill says what the padding of an uneven input shard must hold, because the op
adds it up with the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch

from ....ir.placement import AxisPlacement, chunk_size


@dataclass(frozen=True)
class TensorMeta:
    """The global shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Lowering(StrEnum):
    """What the local op needs beside its local operands, where calling it on them is not enough."""

    OFFSET = "offset"
    """Indices count from the global start of the sharded dim: subtract the rank's offset, drop those outside."""
    SOFTMAX = "softmax"
    """The normalisation over the sharded dim (and the pick of the label's logit) is reduced over the axis inside."""
    STATISTICS = "statistics"
    """Sums over the sharded dim, of which the results are made, are reduced over the axis inside."""


@dataclass(frozen=True)
class Tie:
    """Two dims cut at the same places of their common flattened order.

    Legal where chunk_size(extent, parts) * inner == chunk_size(other_extent, parts) * other_inner: `inner` elements of
    the flattened order belong to one index of the dim.
    """

    extent: int
    inner: int
    other_extent: int
    other_inner: int

    def holds(self, parts: int) -> bool:
        """Whether both dims, cut into `parts`, break at the same places."""
        return chunk_size(self.extent, parts) * self.inner == chunk_size(self.other_extent, parts) * self.other_inner


@dataclass(frozen=True)
class Row:
    """One way to run an op along one mesh axis."""

    outputs: tuple[AxisPlacement | None, ...]
    """One placement per output; None where the op returns nothing there."""
    inputs: tuple[AxisPlacement, ...]
    """One placement per tensor operand, in schema order, lists flattened, absent optionals skipped."""
    ties: tuple[Tie, ...] = ()
    fills: tuple[float | None, ...] = ()
    """Per input: what its padding must hold when its shard is uneven; None: anything, NaN included. Empty: all None."""
    lowering: Lowering | None = None

    def legal(self, parts: int) -> bool:
        """Whether the row holds when the dims it shards are cut into `parts`.

        Where several axes shard one dim, `parts` is the product of their sizes.
        """
        return all(tie.holds(parts) for tie in self.ties)

    def fill(self, index: int) -> float | None:
        """What the padding of input `index` must hold; None: anything."""
        return self.fills[index] if self.fills else None


@dataclass(frozen=True)
class Rules:
    """All rows of one call; the first is all-Replicate."""

    rows: tuple[Row, ...]
    known: bool
    """False: nothing is known of the op, so that only all-Replicate is offered and the caller says so in a remark."""
    source: str
    """Where the rows come from: "own" or "dtensor"."""
