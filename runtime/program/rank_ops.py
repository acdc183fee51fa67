"""Ops that depend on a rank's coordinates, without communication: its chunk, offset, padding, and random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..communicator import Communicator
from ..philox import Part, draw
from .entries import MICROBATCH


class RankOps:
    """The `rank.*` ops of one rank.

    Along a sharded dim its tensor has `chunk` elements, of which the first clamp(extent - coordinate * chunk, 0, chunk)
    are valid; the rest is padding. `microbatch` is the coordinate on the microbatch axis, which has `microbatches`.
    """

    def __init__(self, communicator: Communicator, device: torch.device, microbatches: int = 1) -> None:
        self._communicator = communicator
        self._device = device
        self._microbatches = microbatches

    def shard(self, tensor: Tensor, axes: Sequence[str], dim: int, chunk: int, microbatch: int = 0) -> Tensor:
        """This rank's chunk of a whole tensor along `dim`, padded with zeros to `chunk`."""
        return take_chunk(tensor, dim, self._coordinate(axes, microbatch), chunk).contiguous()

    def offset(self, axes: Sequence[str], chunk: int, microbatch: int = 0) -> Tensor:
        """The global index of this rank's first element: a 0-d int64 tensor."""
        first = self._coordinate(axes, microbatch) * chunk
        return torch.full((), first, dtype=torch.int64, device=self._device)  # a fill, which a CUDA graph may hold

    def mask(
        self,
        tensor: Tensor,
        axes: Sequence[str],
        dim: int,
        chunk: int,
        extent: int,
        fill: float | int | bool,
        microbatch: int = 0,
    ) -> Tensor:
        """`tensor` with its padding along `dim` replaced by `fill`."""
        valid = valid_extent(self._coordinate(axes, microbatch), chunk, extent)
        if valid == chunk:
            return tensor
        masked = tensor.clone()
        masked.narrow(dim, valid, chunk - valid).fill_(fill)
        return masked

    def random(
        self,
        state: Tensor,
        op_index: Tensor,
        size: Sequence[int],
        axes: Sequence[str],
        chunks: Sequence[int],
        below: int | None,
        microbatch: int = 0,
    ) -> Tensor:
        """This rank's part of the random numbers of random op `op_index`; see `ops.RANK_OPS`."""
        coordinates = [self._coordinate(axes_of_dim(names), microbatch) if names else 0 for names in axes]
        starts = tuple(coordinate * chunk for coordinate, chunk in zip(coordinates, chunks, strict=True))
        return draw(state, op_index, Part(tuple(size), starts, tuple(chunks)), below)

    def _coordinate(self, axes: Sequence[str], microbatch: int) -> int:
        """The row-major coordinate over `axes`, of which one may be the microbatch axis."""
        if MICROBATCH not in axes:
            return self._communicator.coordinate(axes)
        position = 0
        for axis in axes:
            if axis == MICROBATCH:
                position = position * self._microbatches + microbatch
            else:
                position = position * self._communicator.size((axis,)) + self._communicator.coordinate((axis,))
        return position


def axes_of_dim(text: str) -> tuple[str, ...]:
    """The axes over which one dim of a `rank.random` is sharded.

    >>> axes_of_dim("dp,tp"), axes_of_dim("")
    (('dp', 'tp'), ())
    """
    return tuple(text.split(",")) if text else ()


def valid_extent(coordinate: int, chunk: int, extent: int) -> int:
    """How many of the `chunk` elements at `coordinate` lie inside `extent`.

    >>> [valid_extent(coordinate, 3, 7) for coordinate in range(4)]
    [3, 3, 1, 0]
    """
    return max(0, min(chunk, extent - coordinate * chunk))


def take_chunk(tensor: Tensor, dim: int, coordinate: int, chunk: int) -> Tensor:
    """Chunk number `coordinate` along `dim`: a view where it is whole, else a copy padded with zeros."""
    extent = tensor.shape[dim]
    valid = valid_extent(coordinate, chunk, extent)
    view = tensor.narrow(dim, min(extent, coordinate * chunk), valid)
    if valid == chunk:
        return view
    shape = list(tensor.shape)
    shape[dim] = chunk
    padded = tensor.new_zeros(shape)
    padded.narrow(dim, 0, valid).copy_(view)
    return padded
