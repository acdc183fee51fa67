"""Placements: which axes shard each dim of a tensor, and over which axes it is partial.

A dim of extent n that is sharded over axes of total size k has k chunks of ceil(n / k) elements; the rank at row-major
coordinate r (over the axes in the order listed) owns [r * chunk, min(n, (r + 1) * chunk)). Its tensor is padded to a
whole chunk, valid elements first, so that all ranks run the same instructions on the same shapes. Axes that shard the
same dim nest, the outermost first: in the plan's order for arguments, elsewhere as in the operands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from math import prod

Mesh = tuple[tuple[str, int], ...]
"""The axes of a mesh in declared order, each with its size; ranks are numbered row-major over them."""


class Reduce(StrEnum):
    """The reduction of a partial placement."""

    SUM = "sum"
    MAX = "max"
    MIN = "min"


@dataclass(frozen=True)
class Shard:
    """Along one mesh axis: each rank holds a chunk of dim `dim`, or of each of its blocks, one after the other."""

    dim: int
    blocks: tuple[int, ...] = ()
    """The extents of the blocks, each of which the axis divides evenly; empty: the dim is cut as a whole.

    The chunks of a block whose extent is negative go to the ranks in reverse: with (4, -4) two ranks have the elements
    0, 1, 6, 7 and 2, 3, 4, 5, the zigzag of causal attention.
    """


@dataclass(frozen=True)
class Replicate:
    """Along one mesh axis: every rank holds the whole tensor."""


@dataclass(frozen=True)
class Partial:
    """Along one mesh axis: the value is the `reduce` of the ranks' tensors."""

    reduce: Reduce = Reduce.SUM


AxisPlacement = Shard | Replicate | Partial


@dataclass(frozen=True)
class Placement:
    """The placement of a tensor of rank `len(dims)` on all axes of a mesh; other axes replicate it."""

    dims: tuple[tuple[str, ...], ...]
    """For each dim, the mesh axes that shard it, outermost first."""
    partial: tuple[tuple[str, Reduce], ...] = ()
    """The axes over which the tensor is partial, in mesh order."""
    blocks: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """(dim, extents of its blocks) of the dims that are cut inside each block, by dim."""

    @staticmethod
    def replicated(rank: int) -> Placement:
        """A placement that replicates a tensor of `rank` dims on all axes."""
        return Placement(((),) * rank)

    @staticmethod
    def of(rank: int, by_axis: Mapping[str, AxisPlacement], mesh: Mesh, like: Sequence[Placement] = ()) -> Placement:
        """Build from one placement per axis. Axes that shard the same dim nest as in `like`, else in mesh order."""
        dims: list[tuple[str, ...]] = [()] * rank
        partial: list[tuple[str, Reduce]] = []
        blocks: dict[int, tuple[int, ...]] = {}
        for axis, _ in mesh:
            match by_axis.get(axis, Replicate()):
                case Shard(dim, extents):
                    dims[dim] = (*dims[dim], axis)
                    blocks |= {dim: extents} if extents else {}
                case Partial(reduce):
                    partial.append((axis, reduce))
                case Replicate():
                    pass
        order = nest_order(mesh, like)
        if order is not None:
            dims = [tuple(sorted(axes, key=order.index)) for axes in dims]
        return Placement(tuple(dims), tuple(partial), tuple(sorted(blocks.items())))

    @staticmethod
    def of_shards(rank: int, dims: Mapping[str, int]) -> Placement:
        """Build from the dim that each axis shards; axes that shard the same dim nest in the order of the mapping.

        >>> Placement.of_shards(2, {"tp": 0, "dp": 0}).dims
        (('tp', 'dp'), ())
        """
        return Placement(tuple(tuple(axis for axis, sharded in dims.items() if sharded == dim) for dim in range(rank)))

    def on(self, axis: str) -> AxisPlacement:
        """The placement on one axis."""
        for dim, axes in enumerate(self.dims):
            if axis in axes:
                return Shard(dim, self.blocks_of(dim))
        for name, reduce in self.partial:
            if name == axis:
                return Partial(reduce)
        return Replicate()

    def blocks_of(self, dim: int) -> tuple[int, ...]:
        """The extents of the blocks inside which a dim is cut; empty where it is cut as a whole, or not at all."""
        return dict(self.blocks).get(dim, ())

    def without(self, axes: Sequence[str]) -> Placement:
        """The placement with the dims whole over some axes."""
        dims = tuple(tuple(a for a in nested if a not in axes) for nested in self.dims)
        return Placement(dims, self.partial, tuple(pair for pair in self.blocks if dims[pair[0]]))

    def with_blocks(self, dim: int, blocks: tuple[int, ...]) -> Placement:
        """The placement with a sharded dim cut inside each block; as a whole for no blocks."""
        others = {other: extents for other, extents in self.blocks if other != dim}
        return Placement(self.dims, self.partial, tuple(sorted((others | ({dim: blocks} if blocks else {})).items())))

    @property
    def is_replicated(self) -> bool:
        return not self.partial and not any(self.dims)


def nest_order(mesh: Mesh, placements: Sequence[Placement]) -> tuple[str, ...] | None:
    """All axes in an order in which the placements nest; an earlier placement decides where two disagree.

    None for the mesh's order.

    >>> nest_order((("dp", 2), ("tp", 2)), [Placement((("tp", "dp"),))])
    ('tp', 'dp')
    """
    declared = tuple(axis for axis, _ in mesh)
    nests = [axes for placement in placements for axes in placement.dims if len(axes) > 1]
    if all(axes == tuple(axis for axis in declared if axis in axes) for axes in nests):
        return None
    outside: dict[str, set[str]] = {axis: set() for axis in declared}
    """By axis, the axes that must come before it."""
    for axes in nests:
        for outer, inner in pairwise(axes):
            if inner not in outside[outer]:
                added = {outer, *outside[outer]}
                for axis in declared:
                    if axis == inner or inner in outside[axis]:
                        outside[axis] |= added
    order: list[str] = []
    while len(order) < len(declared):
        order.append(next(axis for axis in declared if axis not in order and outside[axis] <= {*order}))
    return tuple(order)


def chunk_size(extent: int, parts: int) -> int:
    """The elements of a chunk when `parts` ranks shard `extent` elements: ceil(extent / parts).

    >>> chunk_size(50257, 4)
    12565
    """
    return -(-extent // parts)


def axes_size(mesh: Mesh, axes: tuple[str, ...]) -> int:
    """The number of ranks of a group over `axes`."""
    sizes = dict(mesh)
    return prod(sizes[axis] for axis in axes)


def local_shape(shape: tuple[int, ...], placement: Placement, mesh: Mesh) -> tuple[int, ...]:
    """The padded local shape of a tensor of global `shape`; equal on all ranks."""
    return tuple(chunk_size(n, axes_size(mesh, axes)) for n, axes in zip(shape, placement.dims, strict=True))


def is_even(extent: int, axes: tuple[str, ...], mesh: Mesh) -> bool:
    """Whether the axes shard the extent without padding."""
    return extent % axes_size(mesh, axes) == 0
