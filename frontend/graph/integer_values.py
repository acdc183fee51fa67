"""Which integers a model's buffers and constants hold: no graph says it, and random ones must be alike."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_LARGEST = torch.iinfo(torch.int64).max


def integer_bounds(values: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """By name, [low, high) of the integers that a tensor holds.

    Left out: floats and booleans, empty tensors, fake ones and those on "meta", and what holds int64's largest value.

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
