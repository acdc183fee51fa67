"""A rank's part of a global tensor: the padded local tensor, and the windows of the global tensor that it covers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain

import torch
from torch import Tensor

from ..program.mesh import RankMesh
from ..program.rank_ops import take_chunk, valid_extent
from ..program.records import Shard


def local_tensor(whole: Tensor, shards: Sequence[Shard], mesh: RankMesh, rank: int) -> Tensor:
    """The local tensor of `rank`: a view of `whole` where it is one window of it, else a copy.

    A copy has zeros as padding, and the chunks of blocks one after the other.
    """
    for shard in shards:
        coordinate = mesh.coordinate(rank, shard.axes)
        if shard.blocks:
            windows = block_windows(shard, coordinate, mesh.size(shard.axes))
            whole = torch.cat([whole.narrow(shard.dim, start, n) for start, n in windows], shard.dim)
        else:
            whole = take_chunk(whole, shard.dim, coordinate, shard.chunk)
    return whole


def block_windows(shard: Shard, coordinate: int, parts: int) -> list[tuple[int, int]]:
    """(start, length) of the chunk of each block of the rank at `coordinate` of `parts`."""
    begins = accumulate(shard.blocks, initial=0)
    chunks = [block // parts for block in shard.blocks]
    return [(begin + coordinate * chunk, chunk) for begin, chunk in zip(begins, chunks, strict=False)]


def windows(
    whole: Tensor, local: Tensor, shards: Sequence[Shard], mesh: RankMesh, rank: int
) -> list[tuple[Tensor, Tensor]]:
    """The windows of `whole` that `rank` owns, and of its local tensor the part without padding that belongs to each.

    All are views; a window may be empty. There is one, or one for each block.
    """
    pairs = [(whole, local)]
    for shard in shards:
        coordinate = mesh.coordinate(rank, shard.axes)
        start = min(shard.extent, coordinate * shard.chunk)
        ranges = block_windows(shard, coordinate, mesh.size(shard.axes)) or [
            (start, valid_extent(coordinate, shard.chunk, shard.extent))
        ]
        places = [(first, taken, n) for (first, n), taken in zip(ranges, _taken(ranges), strict=True)]
        pairs = [
            (view.narrow(shard.dim, first, n), own.narrow(shard.dim, taken, n))
            for view, own in pairs
            for first, taken, n in places
        ]
    return pairs


def _taken(ranges: Sequence[tuple[int, int]]) -> list[int]:
    """Where each range begins in the local tensor, which has one after the other."""
    return [0, *accumulate(n for _, n in ranges)][: len(ranges)]


def in_order(gathered: Tensor, shard: Shard, parts: int) -> Tensor:
    """The dim of a shard in its global order, from the ranks' parts one after the other; without padding."""
    gathered = gathered.narrow(shard.dim, 0, shard.extent)
    if not shard.blocks:
        return gathered
    whole = torch.empty_like(gathered)
    for rank in range(parts):
        taken = rank * shard.chunk
        for start, n in block_windows(shard, rank, parts):
            whole.narrow(shard.dim, start, n).copy_(gathered.narrow(shard.dim, taken, n))
            taken += n
    return whole


def valid_part(local: Tensor, shards: Sequence[Shard], mesh: RankMesh, rank: int) -> Tensor:
    """The view of a rank's local tensor without padding; it has the elements of the rank's `windows`."""
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
