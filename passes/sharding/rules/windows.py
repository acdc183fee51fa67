"""Windows: which elements of a spatial dim each output of convolution, pooling, padding or resampling reads.

Where ranks cut the dim, the window says what a rank reads beside its own chunk: its *halo*. Input and output have
chunks of their own. Rank r has inputs [r c, (r + 1) c) and makes outputs [r k, (r + 1) k). All that a rank reads is
linear in r, so every rank runs the same ops on equal shapes; where c and k do not match, the place of the window moves
with r.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ....ir.placement import chunk_size


class Edge(StrEnum):
    """What an op reads beyond the ends of the dim."""

    FILL = "fill"
    """A constant."""
    CLAMP = "clamp"
    """The outermost element."""
    REFLECT = "reflect"
    """The elements inside, mirrored at the outermost one."""


@dataclass(frozen=True)
class Window:
    """A window over one dim. Output o reads inputs [o down + first, .. + extent).

    Where the op spreads, input i goes to outputs [i up + first, .. + extent) instead.
    """

    inputs: int
    outputs: int
    first: int = 0
    extent: int = 1
    down: int = 1
    up: int = 0
    """How many outputs lie between those of two neighbouring inputs; 0 for an op that does not spread."""
    edge: Edge = Edge.FILL
    origin: int = 0
    """Of an op that spreads: the output that its local call on inputs from 0 on gives first."""
    span: int = 0
    """Of an op that spreads: how many outputs its local call gives for one input; `up` more for each further one."""

    @property
    def is_local(self) -> bool:
        """Whether output i reads input i alone."""
        same = self.inputs == self.outputs and (self.first, self.extent, self.down) == (0, 1, 1)
        return same and self.up in (0, 1)

    def halo(self, parts: int) -> Halo:
        """What ranks read when `parts` of them cut the dim."""
        return _spread(self, parts) if self.up else _gathered(self, parts)


@dataclass(frozen=True)
class Linear:
    """A place that moves with the rank: `start` + r `drift`."""

    start: int
    drift: int = 0

    def at(self, rank: int) -> int:
        """The place on one rank."""
        return self.start + rank * self.drift


@dataclass(frozen=True)
class Halo:
    """What a rank reads of one cut dim, and where its outputs lie in what it makes of it.

    A rank puts `before` elements of the ranks before it and `after` of those behind around its own chunk. Its op reads
    `taken` elements from position `reads` of the dim on. Of what the op makes, `made` elements, a rank keeps a chunk.
    """

    chunk: int
    """Elements of the input on a rank."""
    kept: int
    """Elements of the output on a rank."""
    before: int
    after: int
    parts: int
    reads: Linear
    taken: int
    keeps: Linear
    made: int

    @property
    def gathers(self) -> bool:
        """Whether the halo is more than all other chunks: then a gather sends less."""
        return self.before + self.after > (self.parts - 1) * self.chunk

    @property
    def has(self) -> Linear:
        """The position of the first element that a rank has after the exchange."""
        return Linear(0) if self.gathers else Linear(-self.before, self.chunk)

    @property
    def held(self) -> int:
        """How many elements it has then."""
        return self.parts * self.chunk if self.gathers else self.before + self.chunk + self.after

    @property
    def sent(self) -> int:
        """How many elements of the dim a rank sends."""
        return (self.parts - 1) * self.chunk if self.gathers else self.before + self.after


def _gathered(window: Window, parts: int) -> Halo:
    chunk, kept = chunk_size(window.inputs, parts), chunk_size(window.outputs, parts)
    reads = Linear(window.first, kept * window.down)
    taken = (kept - 1) * window.down + window.extent
    ranges = []
    for rank in _busy(window, parts, kept):
        last = min((rank + 1) * kept, window.outputs) - 1
        ranges.append(_inside(window, reads.at(rank), last * window.down + window.first + window.extent))
    before, after = _around(ranges, chunk)
    return Halo(chunk, kept, before, after, parts, reads, taken, Linear(0), kept)


def _spread(window: Window, parts: int) -> Halo:
    chunk, kept, up = chunk_size(window.inputs, parts), chunk_size(window.outputs, parts), window.up
    ranges, lead, trail = [], 0, 0
    for rank in _busy(window, parts, kept):
        low, high = rank * kept, min((rank + 1) * kept, window.outputs) - 1
        first, last = -((window.first + window.extent - 1 - low) // up), (high - window.first) // up
        ranges.append(_inside(window, first, last + 1))
        # the local call must make all outputs of the chunk, those that read nothing too
        lead = max(lead, rank * chunk - first, -((low - window.origin) // up) + rank * chunk)
        made_to = -(-((rank + 1) * kept - window.origin - window.span) // up) + 1
        trail = max(trail, last + 1 - (rank + 1) * chunk, made_to - (rank + 1) * chunk)
    before, after = _around(ranges, chunk)
    taken = lead + chunk + trail
    keeps = Linear(lead * up - window.origin, kept - chunk * up)
    return Halo(chunk, kept, before, after, parts, Linear(-lead, chunk), taken, keeps, (taken - 1) * up + window.span)


def _busy(window: Window, parts: int, kept: int) -> range:
    """The ranks that make outputs; where few outputs are cut, the last ranks have padding alone."""
    return range(min(parts, chunk_size(window.outputs, kept)))


def _inside(window: Window, low: int, high: int) -> tuple[int, int]:
    """The inputs that are read by [low, high), positions that may be beyond the ends."""
    last = window.inputs - 1
    if window.edge is Edge.REFLECT:
        low, high = min(abs(low), last) if low > 0 else 0, max(high, 1 - low)
        low = min(low, 2 * last - (high - 1)) if high > window.inputs else low
    return max(0, min(low, last)), max(1, min(high, window.inputs))


def _around(ranges: list[tuple[int, int]], chunk: int) -> tuple[int, int]:
    """How many elements before and after their own chunks the ranks need, at most."""
    before = max(rank * chunk - low for rank, (low, _) in enumerate(ranges))
    after = max(high - (rank + 1) * chunk for rank, (_, high) in enumerate(ranges))
    return max(0, before), max(0, after)
