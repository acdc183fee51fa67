"""The range of integer buffers and constants, for random inputs in checks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_LARGEST = torch.iinfo(torch.int64).max


def integer_bounds(values: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """By name, the range [low, high) of a tensor's integers.

    Floats, booleans, empty, fake and "meta" tensors, and those with int64's largest value are left out.

    >>> integer_bounds({"ids": torch.arange(4), "scale": torch.ones(2)})
    {'ids': [0, 4]}
    """
    bounds = {name: _bounds(value) for name, value in values.items() if _holds_integers(value)}
    return {name: [low, high + 1] for name, (low, high) in bounds.items() if high < _LARGEST}


def _bounds(value: Tensor) -> tuple[int, int]:
    low, high = value.detach().aminmax()
    return int(low), int(high)


def _holds_integers(value: Tensor) -> bool:
    integers = not (value.is_floating_point() or value.is_complex() or value.dtype is torch.bool)
    return integers and value.numel() > 0 and not value.is_meta and not isinstance(value, FakeTensor)
