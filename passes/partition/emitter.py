"""Build local operations: types of level `comm` from global shapes and placements."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...ir.bindings import Location, Value
from ...ir.placement import Mesh, Placement, axes_size, chunk_size, is_even, local_shape
from ...ir.types import TensorType, from_mlir
from ..rewriting import Emitter
from ..sharding.rules.windows import Window


def local_type(tensor: TensorType, mesh: Mesh) -> TensorType:
    """The local type of a tensor with this global shape and placement; it has `extents` only where uneven."""
    placement = tensor.placement_on(mesh)
    shape = local_shape(tensor.shape, placement, mesh)
    even = all(is_even(n, axes, mesh) for n, axes in zip(tensor.shape, placement.dims, strict=True))
    return replace(tensor, shape=shape, extents=None if even else tensor.shape)


class LocalEmitter(Emitter):
    """An emitter that knows the mesh."""

    def __init__(self, mesh: Mesh, loc: Location) -> None:
        super().__init__(loc)
        self.mesh = mesh
        self.halo_bytes = 0
        """The bytes that a rank sends of halos, by the exchanges that were built with it."""

    def size(self, axes: tuple[str, ...]) -> int:
        """How many chunks a dim that is sharded over `axes` has."""
        return axes_size(self.mesh, axes)

    def chunk(self, extent: int, axes: tuple[str, ...]) -> int:
        """One rank's chunk size of a dim, padding included."""
        return chunk_size(extent, self.size(axes))

    def placed(self, value: Value, global_shape: tuple[int, ...], placement: Placement) -> TensorType:
        """The local type of a tensor of `value`'s dtype with the given global shape and placement."""
        dtype = from_mlir(value.type).dtype
        return local_type(TensorType(dtype, global_shape).placed(placement, self.mesh), self.mesh)


Types = list[TensorType | None]
"""The local types of an op's results; None for one that is not computed."""


@dataclass(frozen=True)
class Shards:
    """A sharded dim: its axes, its chunk size on one rank, its global extent, and the blocks inside which it is cut.

    `window`: how an op reads the dim, where it needs halos.
    """

    dim: int
    axes: tuple[str, ...]
    chunk: int
    extent: int
    blocks: tuple[int, ...] = ()
    window: Window | None = None
