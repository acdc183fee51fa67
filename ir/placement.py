"""How one tensor lies on the mesh: which axes shard each dim, and over which axes it is still a partial result.

A dim of extent n that is sharded over axes of total size k is cut into k chunks of ceil(n / k); the rank at row-major
coordinate r (over the axes in the order listed) owns [r * chunk, min(n, (r + 1) * chunk)). Its tensor is padded to a
whole chunk, valid part first, so that every rank runs the same instructions on the same shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import prod

Mesh = tuple[tuple[str, int], ...]
"""The axes of a mesh in declared order, each with its size; ranks are numbered row-major over them."""


class Reduce(StrEnum):
    """How the ranks' partial results combine into the value."""

    SUM = "sum"
    MAX = "max"
    MIN = "min"


@dataclass(frozen=True)
class Shard:
    """Along one mesh axis: each rank holds a chunk of dim `dim`."""

    dim: int


@dataclass(frozen=True)
class Replicate:
    """Along one mesh axis: every rank holds the same."""


@dataclass(frozen=True)
class Partial:
    """Along one mesh axis: the value is the `reduce` of what the ranks hold."""

    reduce: Reduce = Reduce.SUM


AxisPlacement = Shard | Replicate | Partial


@dataclass(frozen=True)
class Placement:
    """The placement of a tensor of rank `len(dims)` on all axes of a mesh; an axis not named is replicated."""

    dims: tuple[tuple[str, ...], ...]
    """For each dim, the mesh axes that shard it, outermost first."""
    partial: tuple[tuple[str, Reduce], ...] = ()
    """The axes over which the value is still to be reduced, in mesh order."""

    @staticmethod
    def replicated(rank: int) -> Placement:
        """Every rank holds the whole tensor of `rank` dims."""
        return Placement(((),) * rank)

    @staticmethod
    def of(rank: int, by_axis: dict[str, AxisPlacement], mesh: Mesh) -> Placement:
        """Build from one placement per axis; axes sharding the same dim nest in mesh order."""
        dims: list[tuple[str, ...]] = [()] * rank
        partial: list[tuple[str, Reduce]] = []
        for axis, _ in mesh:
            match by_axis.get(axis, Replicate()):
                case Shard(dim):
                    dims[dim] = (*dims[dim], axis)
                case Partial(reduce):
                    partial.append((axis, reduce))
                case Replicate():
                    pass
        return Placement(tuple(dims), tuple(partial))

    def on(self, axis: str) -> AxisPlacement:
        """What this placement says of one axis."""
        for dim, axes in enumerate(self.dims):
            if axis in axes:
                return Shard(dim)
        for name, reduce in self.partial:
            if name == axis:
                return Partial(reduce)
        return Replicate()

    @property
    def is_replicated(self) -> bool:
        return not self.partial and not any(self.dims)


def chunk_size(extent: int, parts: int) -> int:
    """Elements of one chunk when `extent` elements are cut into `parts`: ceil(extent / parts).

    >>> chunk_size(50257, 4)
    12565
    """
    return -(-extent // parts)


def axes_size(mesh: Mesh, axes: tuple[str, ...]) -> int:
    """How many ranks one group over `axes` has."""
    sizes = dict(mesh)
    return prod(sizes[axis] for axis in axes)


def local_shape(shape: tuple[int, ...], placement: Placement, mesh: Mesh) -> tuple[int, ...]:
    """The padded shape that every rank holds of a tensor of global `shape`."""
    return tuple(chunk_size(n, axes_size(mesh, axes)) for n, axes in zip(shape, placement.dims, strict=True))


def is_even(extent: int, axes: tuple[str, ...], mesh: Mesh) -> bool:
    """Whether the axes cut the dim without padding."""
    return extent % axes_size(mesh, axes) == 0
