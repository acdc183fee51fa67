"""What stands in padding: NaN (for integers a number far out of range), so that a value that leaks from there shows."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor


class Padding(StrEnum):
    """What the interpreter fills padding with."""

    NAN = "nan"
    """NaN for floats, 2^52 for int64 (as much as fits for smaller ones), true for booleans."""
    ZERO = "zero"
    """What the runtime fills it with."""


_POISON = {torch.int64: 1 << 52, torch.int32: 1 << 30, torch.int16: 1 << 14, torch.int8: 1 << 6, torch.uint8: 1 << 7}


def fill_value(dtype: torch.dtype, padding: Padding) -> float | int | bool:
    """What one padded element of a dtype holds."""
    if padding is Padding.ZERO:
        return 0
    if dtype.is_floating_point:
        return float("nan")
    return True if dtype is torch.bool else _POISON[dtype]


def is_poison(indices: Tensor) -> Tensor:
    """Which indices come from padding: those of at least half the poison's magnitude, so that small sums stay it."""
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
