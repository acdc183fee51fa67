"""The global tensors that ranks' tensors may be parts of, where their type does not say how.

Over each axis on which ranks differ, their tensors may be shards of a dim or terms of a sum, a maximum or a minimum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import islice

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
    axes = [axis for axis, _ in grid.mesh]
    yield from islice(_joined(dict(enumerate(local_values)), axes, grid), _MOST)


def _groups(values: Mapping[int, Tensor], axis: str, grid: Grid) -> dict[int, list[Tensor]]:
    """By the first rank of each group along an axis: the tensors of its ranks."""
    firsts = [rank for rank in values if grid.coordinate(rank, [axis]) == 0]
    return {rank: [values[member] for member in grid.group(rank, [axis])] for rank in firsts}


def _joined(
    values: dict[int, Tensor],
    axes: Sequence[str],
    grid: Grid,
    part: Part = Part.CHUNK,
    inner: tuple[str, int | None] | None = None,
) -> Iterator[tuple[Tensor, Part]]:
    """Join the tensors over the axes, the innermost first.

    The order of two axes matters only where they cut the same dim, so that the mesh's order stands for the others:
    after `inner`, the axis that was joined last and the dim that it cuts, an axis behind it in the mesh joins only that
    dim.
    """
    for axis in axes:
        groups = _groups(values, axis, grid)
        if all(agree(group[0], other) for group in groups.values() for other in group[1:]):
            one_of_each = {rank: group[0] for rank, group in groups.items()}
            yield from _joined(one_of_each, [other for other in axes if other != axis], grid, part, inner)
            return
    if not axes:
        yield from ((value, part) for value in values.values())
    declared = [axis for axis, _ in grid.mesh]
    for axis in reversed(axes):
        others = [other for other in axes if other != axis]
        groups = _groups(values, axis, grid)
        ranks, sample = len(next(iter(groups.values()))), next(iter(values.values()))
        dims = range(sample.dim())
        if inner is None or declared.index(axis) < declared.index(inner[0]):
            for reduced in (torch.sum, torch.amax, torch.amin):
                totals = {rank: reduced(torch.stack(group), 0) for rank, group in groups.items()}
                yield from _joined(totals, others, grid, Part.TERM, (axis, None))
        else:
            dims = range(0) if inner[1] is None else range(inner[1], inner[1] + 1)
        for dim in dims:
            joined = {rank: torch.cat(group, dim) for rank, group in groups.items()}
            yield from _joined(joined, others, grid, part, (axis, dim))
            for extent in _valid_extents(joined, dim, ranks):
                valid = {rank: each.narrow(dim, 0, extent) for rank, each in joined.items()}
                yield from _joined(valid, others, grid, part, (axis, dim))


def _valid_extents(joined: dict[int, Tensor], dim: int, count: int) -> Iterator[int]:
    """The extents of a dim without the padding at its end, which holds the same everywhere."""
    whole = next(iter(joined.values())).shape[dim]
    for extent in range(whole - 1, whole - whole // count, -1):
        tails = [each.narrow(dim, extent, whole - extent) for each in joined.values()]
        if any(bool(tail.isfinite().any()) and not bool((tail == tail.reshape(-1)[0]).all()) for tail in tails):
            return
        yield extent
