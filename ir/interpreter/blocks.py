"""A rank's chunks of a dim that is cut inside each of its blocks: where they are in the global tensor, in order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def block_windows(blocks: Sequence[int], coordinate: int, parts: int) -> list[tuple[int, int]]:
    """(start, length) of each chunk of the member at `coordinate` of `parts`.

    The chunks of a negative extent are counted from the last one.

    >>> block_windows([8, 2, 2], 1, 2), block_windows([4, -4], 0, 2)
    ([(4, 4), (9, 1), (11, 1)], [(0, 2), (6, 2)])
    """
    windows, begin = [], 0
    for extent in blocks:
        chunk = abs(extent) // parts
        windows.append((begin + (coordinate if extent > 0 else parts - 1 - coordinate) * chunk, chunk))
        begin += abs(extent)
    return windows


def chunks_of_blocks(tensor: Tensor, dim: int, blocks: Sequence[int], coordinate: int, parts: int) -> Tensor:
    """The member's chunks, one after the other."""
    return torch.cat([tensor.narrow(dim, start, n) for start, n in block_windows(blocks, coordinate, parts)], dim)


def put_chunks(whole: Tensor, dim: int, blocks: Sequence[int], coordinate: int, parts: int, chunks: Tensor) -> None:
    """Copy a member's chunks to their places in the global tensor."""
    taken = 0
    for start, n in block_windows(blocks, coordinate, parts):
        whole.narrow(dim, start, n).copy_(chunks.narrow(dim, taken, n))
        taken += n
