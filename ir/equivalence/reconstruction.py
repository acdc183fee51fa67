"""The global tensors that ranks' tensors may be parts of, where their type does not say how.

Over each axis on which ranks differ, their tensors may be shards of a dim or terms of a sum, a maximum or a minimum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum

import torch
from torch import Tensor

from ..interpreter.cutting import agree
from ..interpreter.grid import Grid


class Part(StrEnum):
    """What the tensor of a rank is of a global one."""

    CHUNK = "chunk"
    TERM = "term"
    """Of a sum, a maximum or a minimum."""


_MOST = 64
"""The most candidates of one value."""


def candidates(local_values: Sequence[Tensor], grid: Grid) -> Iterator[tuple[Tensor, Part]]:
    """Global tensors whose legal placement the ranks' tensors may be, and what each rank then has of them."""
    values = dict(enumerate(local_values))
    for number, whole in enumerate(_joined(values, [axis for axis, _ in grid.mesh], grid)):
        if number >= _MOST:
            return
        yield whole


def _joined(
    values: dict[int, Tensor], axes: Sequence[str], grid: Grid, part: Part = Part.CHUNK
) -> Iterator[tuple[Tensor, Part]]:
    if not axes:
        yield from ((value, part) for value in values.values())
        return
    *outer, axis = axes
    firsts = [rank for rank in values if grid.coordinate(rank, [axis]) == 0]
    groups = {rank: [values[member] for member in grid.group(rank, [axis])] for rank in firsts}
    if all(agree(group[0], other) for group in groups.values() for other in group[1:]):
        yield from _joined({rank: group[0] for rank, group in groups.items()}, outer, grid, part)
        return
    for reduced in (torch.sum, torch.amax, torch.amin):
        totals = {rank: reduced(torch.stack(group), 0) for rank, group in groups.items()}
        yield from _joined(totals, outer, grid, Part.TERM)
    for dim in range(next(iter(groups.values()))[0].dim()):
        joined = {rank: torch.cat(group, dim) for rank, group in groups.items()}
        yield from _joined(joined, outer, grid, part)
        for extent in _valid_extents(joined, dim, len(groups[firsts[0]])):
            yield from _joined({rank: each.narrow(dim, 0, extent) for rank, each in joined.items()}, outer, grid, part)


def _valid_extents(joined: dict[int, Tensor], dim: int, count: int) -> Iterator[int]:
    """The extents of a dim without the padding at its end, which holds the same everywhere."""
    whole = next(iter(joined.values())).shape[dim]
    for extent in range(whole - 1, whole - whole // count, -1):
        tails = [each.narrow(dim, extent, whole - extent) for each in joined.values()]
        if any(bool(tail.isfinite().any()) and not bool((tail == tail.reshape(-1)[0]).all()) for tail in tails):
            return
        yield extent
