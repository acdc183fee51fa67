"""A rank's part of a global tensor: the padded local tensor, and the window of the global tensor that it covers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from torch import Tensor

from ..program.mesh import RankMesh
from ..program.rank_ops import take_chunk, valid_extent
from ..program.records import Shard


def local_tensor(whole: Tensor, shards: Sequence[Shard], mesh: RankMesh, rank: int) -> Tensor:
    """The local tensor of `rank`: a view of `whole` where nothing is padded, else a copy padded with zeros."""
    for shard in shards:
        whole = take_chunk(whole, shard.dim, mesh.coordinate(rank, shard.axes), shard.chunk)
    return whole


def window(whole: Tensor, shards: Sequence[Shard], mesh: RankMesh, rank: int) -> Tensor:
    """The view of `whole` that `rank` owns; it has no padding and may be empty."""
    for shard in shards:
        coordinate = mesh.coordinate(rank, shard.axes)
        start = min(shard.extent, coordinate * shard.chunk)
        whole = whole.narrow(shard.dim, start, valid_extent(coordinate, shard.chunk, shard.extent))
    return whole


def valid_part(local: Tensor, shards: Sequence[Shard], mesh: RankMesh, rank: int) -> Tensor:
    """The view of a rank's local tensor without padding; it has the shape of the rank's `window`."""
    for shard in shards:
        valid = valid_extent(mesh.coordinate(rank, shard.axes), shard.chunk, shard.extent)
        local = local.narrow(shard.dim, 0, valid)
    return local


def sharding_axes(shards: Sequence[Shard]) -> tuple[str, ...]:
    """The axes that shard the tensor."""
    return tuple(chain.from_iterable(shard.axes for shard in shards))


def local_shape(shape: Sequence[int], shards: Sequence[Shard]) -> tuple[int, ...]:
    """The shape of every rank's local tensor, padding included."""
    local = list(shape)
    for shard in shards:
        local[shard.dim] = shard.chunk
    return tuple(local)
