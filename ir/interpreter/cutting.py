"""Shard global tensors into each rank's local tensor, and join local tensors to a global one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..placement import Placement, Reduce
from ..types import TensorType
from .blocks import chunks_of_blocks, put_chunks
from .collectives import reduce_tensors
from .errors import REPLICAS, InterpreterError
from .grid import Grid
from .padding import Padding, chunk_of

_ROUNDING = 1024
"""Replicas may differ by this many units in the last place of the largest element."""


def cut(tensor: Tensor, type_: TensorType, rank: int, grid: Grid, padding: Padding) -> Tensor:
    """A rank's local tensor. With a partial placement, ranks get different contributions, not the value."""
    placement = type_.placement_on(grid.mesh)
    for dim, axes in enumerate(placement.dims):
        if blocks := placement.blocks_of(dim):
            tensor = chunks_of_blocks(tensor, dim, blocks, grid.coordinate(rank, axes), grid.size(axes))
        elif axes:
            tensor = chunk_of(tensor, dim, grid.coordinate(rank, axes), type_.shape[dim], padding)
    for axis, reduce in reversed(placement.partial):
        if grid.size([axis]) > 1:
            tensor = _SPLITS[reduce](tensor, grid.coordinate(rank, [axis]), grid.size([axis]))
    return tensor


def _partial_sum(tensor: Tensor, member: int, count: int) -> Tensor:
    """One of `count` tensors whose sum is `tensor` without rounding: per element, 2 x, -x and zeros.

    The members that hold 2 x and -x rotate from element to element; an element that is not finite has one holder.
    """
    own, previous = _owned_elements(tensor, member, count)
    if not tensor.dtype.is_floating_point:
        return torch.where(own, tensor + 1, torch.where(previous, -1, 0)).to(tensor.dtype)
    finite = tensor.isfinite()
    return torch.where(own, tensor.where(~finite, 2 * tensor), (-tensor).where(previous & finite, 0.0))


def _partial_max(tensor: Tensor, member: int, count: int) -> Tensor:
    """One of `count` tensors whose maximum is `tensor`: some of its elements, and smaller values elsewhere."""
    return _partial_bound(tensor, member, count, -1)


def _partial_min(tensor: Tensor, member: int, count: int) -> Tensor:
    """One of `count` tensors whose minimum is `tensor`."""
    return _partial_bound(tensor, member, count, 1)


def _partial_bound(tensor: Tensor, member: int, count: int, sign: int) -> Tensor:
    own, _ = _owned_elements(tensor, member, count)
    if tensor.dtype in (torch.bool, torch.uint8):
        limit = 0 if sign < 0 else (1 if tensor.dtype is torch.bool else 255)
        return torch.where(own, tensor, torch.full_like(tensor, limit))
    return torch.where(own, tensor, tensor + sign * (tensor.abs() + 1))


def _owned_elements(tensor: Tensor, member: int, count: int) -> tuple[Tensor, Tensor]:
    """Masks of the elements that this member owns, and that the previous member owns, in rotation."""
    owner = torch.arange(tensor.numel()).reshape(tensor.shape) % count
    return owner == member, (owner + 1) % count == member


_SPLITS = {Reduce.MAX: _partial_max, Reduce.MIN: _partial_min, Reduce.SUM: _partial_sum}
"""By reduction, the function that makes a member's contribution to a tensor."""


def join(local_values: Sequence[Tensor], type_: TensorType, grid: Grid, name: str) -> Tensor:
    """The global tensor of all ranks' local ones; E0659 if replicas differ."""
    placement = type_.placement_on(grid.mesh)
    shape = type_.global_shape(grid.mesh)
    whole = torch.empty(shape, dtype=local_values[0].dtype)
    replicas: dict[tuple[int, ...], tuple[int, Tensor]] = {}
    for rank in range(grid.ranks):
        if any(grid.coordinate(rank, [axis]) for axis, _ in placement.partial):
            continue
        value = _reduced(local_values, rank, placement, grid)
        coordinates = tuple(grid.coordinate(rank, axes) for axes in placement.dims)
        starts = [
            min(coordinate * n, extent) for coordinate, n, extent in zip(coordinates, type_.shape, shape, strict=True)
        ]
        sizes = [min(n, extent - s) for s, n, extent in zip(starts, type_.shape, shape, strict=True)]
        valid = _window(value, [0] * len(sizes), sizes)
        if coordinates in replicas:
            first_rank, first_value = replicas[coordinates]
            check_agree(first_value, valid, f"ranks {first_rank} and {rank}", name)
        else:
            replicas[coordinates] = (rank, valid)
            _window(whole, starts, sizes).copy_(valid)
    for dim, blocks in placement.blocks:
        whole = _in_order(whole, dim, blocks, grid.size(placement.dims[dim]))
    return whole


def _in_order(chunks: Tensor, dim: int, blocks: Sequence[int], parts: int) -> Tensor:
    """The global tensor from the members' chunks of its blocks, member by member."""
    whole, own = torch.empty_like(chunks), chunks.shape[dim] // parts
    for coordinate in range(parts):
        put_chunks(whole, dim, blocks, coordinate, parts, chunks.narrow(dim, coordinate * own, own))
    return whole


def _reduced(local_values: Sequence[Tensor], rank: int, placement: Placement, grid: Grid) -> Tensor:
    """The rank's value, reduced over its partial axes in mesh order."""
    members = [rank]
    values = {rank: local_values[rank]}
    for axis, _ in placement.partial:
        members = [r for m in members for r in grid.group(m, [axis])]
    values = {r: local_values[r] for r in members}
    for axis, reduce in placement.partial:
        remaining = [r for r in values if grid.coordinate(r, [axis]) == 0]
        values = {r: reduce_tensors([values[m] for m in grid.group(r, [axis])], str(reduce)) for r in remaining}
    return values[rank]


def _window(tensor: Tensor, starts: Sequence[int], sizes: Sequence[int]) -> Tensor:
    for dim, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        tensor = tensor.narrow(dim, start, size)
    return tensor


def check_agree(a: Tensor, b: Tensor, holders: str, name: str) -> None:
    """E0659 if two replicas of a result differ; `holders` is such as "ranks 0 and 2"."""
    if not agree(a, b):
        raise InterpreterError(
            REPLICAS,
            f'{holders} should hold the same of result "{name}", but differ by {_distance(a, b):.3g}',
            help="a reduction is missing, or there is one too many",
        )


def agree(a: Tensor, b: Tensor) -> bool:
    """Whether two replicas are equal up to rounding; NaN equals NaN."""
    if torch.equal(a, b) or not a.dtype.is_floating_point:
        return torch.equal(a, b)
    if not torch.equal(a.isfinite(), b.isfinite()):
        return False
    largest = float(a.nan_to_num(0, 0, 0).abs().max())
    return bool(_distance(a, b) <= _ROUNDING * torch.finfo(a.dtype).eps * largest)


def _distance(a: Tensor, b: Tensor) -> float:
    difference = (a.double() - b.double()).abs().nan_to_num(0, 0, 0)
    return float(difference.max()) if difference.numel() else 0.0
