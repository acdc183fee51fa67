"""A sharding strategy: on one mesh axis, these input placements give these output placements.

A strategy is valid for an axis of any size, with two conditions. A `Tie` excludes the part counts for which chunk
boundaries of two dims would not coincide. A fill is the value that the padding of an uneven input shard must hold,
because the op reduces it with the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch

from ....ir.placement import AxisPlacement, Shard, chunk_size
from .windows import Window


@dataclass(frozen=True)
class TensorMeta:
    """The global shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Lowering(StrEnum):
    """What the local op needs beyond its local operands, where calling it on them is not enough."""

    OFFSET = "offset"
    """Indices count from the global start of the sharded dim: subtract the rank's offset, drop those outside."""
    SOFTMAX = "softmax"
    """The normalisation over the sharded dim (and the label's logit) is reduced over the axis inside the op."""
    STATISTICS = "statistics"
    """Sums over the sharded dim, which the results need, are reduced over the axis inside the op."""
    RING = "ring"
    """Chunks of the sharded dim go from rank to rank inside the op. Taken only where a plan asks for it."""
    STATE = "state"
    """Sums over the chunks before a rank's are added inside the op. Taken only where a plan asks for it."""
    HALO = "halo"
    """Ranks read elements of their neighbours' chunks of an image, as the op's window says (`Strategy.window`)."""
    EXCHANGE = "exchange"
    """Rows go to the ranks that have their experts, and what is computed of them comes back, inside the op."""


@dataclass(frozen=True)
class Tie:
    """Two dims whose chunk boundaries must coincide in their common flattened order.

    Legal where chunk_size(extent, parts) * inner == chunk_size(other_extent, parts) * other_inner: `inner` elements of
    the flattened order belong to one index of the dim.
    """

    extent: int
    inner: int
    other_extent: int
    other_inner: int

    def holds(self, parts: int) -> bool:
        """Whether the chunk boundaries of both dims coincide for `parts` parts."""
        return chunk_size(self.extent, parts) * self.inner == chunk_size(self.other_extent, parts) * self.other_inner


@dataclass(frozen=True)
class Strategy:
    """One way to run an op along one mesh axis."""

    outputs: tuple[AxisPlacement | None, ...]
    """One placement per output; None where the op returns nothing there."""
    inputs: tuple[AxisPlacement, ...]
    """One placement per tensor operand, in schema order, lists flattened, absent optionals skipped."""
    ties: tuple[Tie, ...] = ()
    fills: tuple[float | None, ...] = ()
    """Per input: the value its padding must hold when its shard is uneven; None: any, NaN included. Empty: all None."""
    lowering: Lowering | None = None
    window: Window | None = None
    """How the op reads the sharded dim, where ranks need halos of it."""
    divided: tuple[int, ...] = ()
    """Extents that the parts must divide, because the op has no use for padding."""

    def legal(self, parts: int) -> bool:
        """Whether the strategy is valid when the dims it shards have `parts` parts.

        Where several axes shard one dim, `parts` is the product of their sizes.
        """
        shards = [p for p in (*self.inputs, *self.outputs) if isinstance(p, Shard)]
        extents = [*self.divided, *(extent for placement in shards for extent in placement.blocks)]
        return all(tie.holds(parts) for tie in self.ties) and not any(extent % parts for extent in extents)

    def fill(self, index: int) -> float | None:
        """The value that the padding of input `index` must hold; None: any."""
        return self.fills[index] if self.fills else None


@dataclass(frozen=True)
class OpStrategies:
    """The sharding strategies of one call; the first is all-Replicate."""

    strategies: tuple[Strategy, ...]
    known: bool
    """False: the op has no sharding rule, so only all-Replicate is offered, and the caller reports it in a remark."""
    source: str
    """Where the strategies come from: "own" or "dtensor"."""
