"""Global tensors cut into what each rank holds, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..placement import Placement, Reduce
from ..types import TensorType
from .collectives import combine
from .errors import REPLICAS, InterpreterError
from .grid import Grid
from .padding import Padding, chunk_of

_ROUNDING = 1024
"""Replicas may differ by this many units of rounding of the largest element."""


def cut(tensor: Tensor, type_: TensorType, rank: int, grid: Grid, padding: Padding) -> Tensor:
    """What a rank holds of a global tensor; of a partial value a part that cannot pass for the whole."""
    placement = type_.placement_on(grid.mesh)
    for dim, axes in enumerate(placement.dims):
        if axes:
            tensor = chunk_of(tensor, dim, grid.coordinate(rank, axes), type_.shape[dim], padding)
    for axis, reduce in reversed(placement.partial):
        if grid.size([axis]) > 1:
            tensor = _SPLITS[reduce](tensor, grid.coordinate(rank, [axis]), grid.size([axis]))
    return tensor


def _addend(tensor: Tensor, member: int, count: int) -> Tensor:
    """One of `count` tensors that add up to this one without rounding: twice an element, minus it, and zeros.

    Who holds which goes round from element to element; what is no finite number is held by one alone.
    """
    one, other = _turns(tensor, member, count)
    if not tensor.dtype.is_floating_point:
        return torch.where(one, tensor + 1, torch.where(other, -1, 0)).to(tensor.dtype)
    finite = tensor.isfinite()
    return torch.where(one, tensor.where(~finite, 2 * tensor), (-tensor).where(other & finite, 0.0))


def _lower(tensor: Tensor, member: int, count: int) -> Tensor:
    """One of `count` tensors whose maximum this is; each holds some elements of it, and smaller ones for the rest."""
    return _bounded(tensor, member, count, -1)


def _higher(tensor: Tensor, member: int, count: int) -> Tensor:
    """One of `count` tensors whose minimum this is."""
    return _bounded(tensor, member, count, 1)


def _bounded(tensor: Tensor, member: int, count: int, sign: int) -> Tensor:
    own, _ = _turns(tensor, member, count)
    if tensor.dtype in (torch.bool, torch.uint8):
        limit = 0 if sign < 0 else (1 if tensor.dtype is torch.bool else 255)
        return torch.where(own, tensor, torch.full_like(tensor, limit))
    return torch.where(own, tensor, tensor + sign * (tensor.abs() + 1))


def _turns(tensor: Tensor, member: int, count: int) -> tuple[Tensor, Tensor]:
    """The elements of which it is this member's turn, and those of which it was the turn of the one before."""
    turn = torch.arange(tensor.numel()).reshape(tensor.shape) % count
    return turn == member, (turn + 1) % count == member


_SPLITS = {Reduce.MAX: _lower, Reduce.MIN: _higher, Reduce.SUM: _addend}
"""By reduction, how a whole tensor is split over one axis."""


def join(held: Sequence[Tensor], type_: TensorType, grid: Grid, name: str) -> Tensor:
    """The global tensor of what all ranks hold; E0659 where replicas differ."""
    placement = type_.placement_on(grid.mesh)
    shape = type_.global_shape(grid.mesh)
    made = torch.empty(shape, dtype=held[0].dtype)
    first: dict[tuple[int, ...], tuple[int, Tensor]] = {}
    for rank in range(grid.ranks):
        if any(grid.coordinate(rank, [axis]) for axis, _ in placement.partial):
            continue
        value = _reduced(held, rank, placement, grid)
        place = tuple(grid.coordinate(rank, axes) for axes in placement.dims)
        starts = [min(at * n, extent) for at, n, extent in zip(place, type_.shape, shape, strict=True)]
        sizes = [min(n, extent - s) for s, n, extent in zip(starts, type_.shape, shape, strict=True)]
        valid = _window(value, [0] * len(sizes), sizes)
        if place in first:
            one, other = first[place]
            check_agree(other, valid, f"ranks {one} and {rank}", name)
        else:
            first[place] = (rank, valid)
            _window(made, starts, sizes).copy_(valid)
    return made


def _reduced(held: Sequence[Tensor], rank: int, placement: Placement, grid: Grid) -> Tensor:
    """The rank's value, combined with those that differ on partial axes; sums inside, then maxima, by mesh order."""
    members = [rank]
    values = {rank: held[rank]}
    for axis, _ in placement.partial:
        members = [r for m in members for r in grid.group(m, [axis])]
    values = {r: held[r] for r in members}
    for axis, reduce in placement.partial:
        kept = [r for r in values if grid.coordinate(r, [axis]) == 0]
        values = {r: combine([values[m] for m in grid.group(r, [axis])], str(reduce)) for r in kept}
    return values[rank]


def _window(tensor: Tensor, starts: Sequence[int], sizes: Sequence[int]) -> Tensor:
    for dim, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        tensor = tensor.narrow(dim, start, size)
    return tensor


def check_agree(a: Tensor, b: Tensor, who: str, name: str) -> None:
    """E0659 where two replicas of a result, held by "ranks 0 and 2", differ."""
    if not agree(a, b):
        raise InterpreterError(
            REPLICAS,
            f'{who} should hold the same of result "{name}", but differ by {_distance(a, b):.3g}',
            help="a reduction is missing, or one too many is there",
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
