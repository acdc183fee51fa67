"""A rank's part of a global tensor: cutting it out, and finding the window of the whole that it fills."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from torch import Tensor

from ..program.mesh import RankMesh
from ..program.rank_ops import cut_dim, valid_extent
from ..program.records import Shard


def cut(whole: Tensor, shards: Sequence[Shard], mesh: RankMesh, rank: int) -> Tensor:
    """The tensor that `rank` holds of `whole`: a view where nothing is padded, else a copy padded with zeros."""
    for shard in shards:
        whole = cut_dim(whole, shard.dim, mesh.coordinate(rank, shard.axes), shard.chunk)
    return whole


def window(whole: Tensor, shards: Sequence[Shard], mesh: RankMesh, rank: int) -> Tensor:
    """The view of `whole` that `rank` owns, without padding; it may be empty."""
    for shard in shards:
        coordinate = mesh.coordinate(rank, shard.axes)
        start = min(shard.extent, coordinate * shard.chunk)
        whole = whole.narrow(shard.dim, start, valid_extent(coordinate, shard.chunk, shard.extent))
    return whole


def valid_part(local: Tensor, shards: Sequence[Shard], mesh: RankMesh, rank: int) -> Tensor:
    """The view of a rank's tensor that is not padding: what stands in its `window`."""
    for shard in shards:
        valid = valid_extent(mesh.coordinate(rank, shard.axes), shard.chunk, shard.extent)
        local = local.narrow(shard.dim, 0, valid)
    return local


def sharding_axes(shards: Sequence[Shard]) -> tuple[str, ...]:
    """The axes that cut the tensor; on all others it is replicated."""
    return tuple(chain.from_iterable(shard.axes for shard in shards))


def local_shape(shape: Sequence[int], shards: Sequence[Shard]) -> tuple[int, ...]:
    """The shape that every rank holds, padding included."""
    local = list(shape)
    for shard in shards:
        local[shard.dim] = shard.chunk
    return tuple(local)
