"""The `rank.*` ops by definition: what depends on a rank's coordinates, without communication.

Along a sharded dim a rank's tensor has `chunk` elements, of which those at a global index below `extent` are valid. The
rest is padding, which is NaN here (0 at run time), so that a leak shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...ir.interpreter.errors import NO_MEANING, InterpreterError
from ...ir.interpreter.grid import Grid
from ...ir.interpreter.padding import Padding, chunk_of
from ...ir.interpreter.random import random_words


class RankOps:
    """The ops of one rank for one microbatch."""

    def __init__(self, grid: Grid, rank: int, microbatch: int | None) -> None:
        self._grid = grid
        self._rank = rank
        self._microbatch = microbatch

    def run(self, op: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """The result of an op. E0652 for an unknown op or unknown axes, TypeError for wrong keywords."""
        ops: dict[str, Callable[..., Tensor]] = {
            "rank.shard": self._shard,
            "rank.offset": self._offset,
            "rank.mask": self._mask,
            "rank.random": self._random,
        }
        if op not in ops:
            raise InterpreterError(NO_MEANING, f'"{op}" is not an op of programs')
        return ops[op](*args, **kwargs)

    def _shard(self, whole: Tensor, *, axes: Sequence[str], dim: int, chunk: int) -> Tensor:
        return chunk_of(whole, dim, self._coordinate(axes), chunk, Padding.NAN).clone()

    def _offset(self, *, axes: Sequence[str], chunk: int) -> Tensor:
        return torch.tensor(self._coordinate(axes) * chunk, dtype=torch.int64)

    def _mask(
        self, local: Tensor, *, axes: Sequence[str], dim: int, chunk: int, extent: int, fill: float | int | bool
    ) -> Tensor:
        if local.shape[dim] != chunk:
            raise ValueError(f"dim {dim} has {local.shape[dim]} elements, but the mask is for {chunk}")
        first = self._coordinate(axes) * chunk
        is_valid = torch.arange(first, first + chunk) < extent
        shape = [chunk if d == dim % local.dim() else 1 for d in range(local.dim())]
        return torch.where(is_valid.reshape(shape), local, torch.tensor(fill, dtype=local.dtype))

    def _random(
        self,
        state: Tensor,
        number: Tensor,
        *,
        size: Sequence[int],
        axes: Sequence[str],
        chunks: Sequence[int],
        below: int | None,
    ) -> Tensor:
        part = random_words(state, number, None, size, below)
        for dim, (names, chunk) in enumerate(zip(axes, chunks, strict=True)):
            coordinate = self._coordinate(names.split(",")) if names else 0
            part = chunk_of(part, dim, coordinate, chunk, Padding.NAN)
        return part

    def _coordinate(self, axes: Sequence[str]) -> int:
        if not self._grid.knows(list(axes)):
            raise InterpreterError(NO_MEANING, f"the mesh has no axes {list(axes)}")
        return self._grid.coordinate(self._rank, list(axes), self._microbatch)
