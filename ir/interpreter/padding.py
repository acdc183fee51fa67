"""Padding values: NaN, or an integer far out of range, so that values that leak from padding show."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor


class Padding(StrEnum):
    """The fill of padding."""

    NAN = "nan"
    """NaN for floats, 2^52 for int64 (less for smaller integers), true for booleans."""
    ZERO = "zero"
    """0, as in the runtime."""


_POISON = {torch.int64: 1 << 52, torch.int32: 1 << 30, torch.int16: 1 << 14, torch.int8: 1 << 6, torch.uint8: 1 << 7}


def fill_value(dtype: torch.dtype, padding: Padding) -> float | int | bool:
    """The value of a padded element."""
    if padding is Padding.ZERO:
        return 0
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return True if dtype is torch.bool else _POISON[dtype]


def is_poison(indices: Tensor) -> Tensor:
    """Which indices come from padding: at least half the poison value, so that sums with small numbers count."""
    if indices.dtype not in (torch.int64, torch.int32):
        return torch.zeros_like(indices, dtype=torch.bool)
    return indices.abs() >= _POISON[indices.dtype] // 2


def chunk_of(tensor: Tensor, dim: int, coordinate: int, chunk: int, padding: Padding) -> Tensor:
    """Elements [coordinate * chunk, (coordinate + 1) * chunk) along dim; those past the end are padding."""
    extent = tensor.shape[dim]
    start = min(coordinate * chunk, extent)
    valid = min(chunk, extent - start)
    part = tensor.narrow(dim, start, valid)
    if valid == chunk:
        return part
    shape = list(tensor.shape)
    shape[dim] = chunk
    padded = torch.full(shape, fill_value(tensor.dtype, padding), dtype=tensor.dtype)
    padded.narrow(dim, 0, valid).copy_(part)
    return padded
