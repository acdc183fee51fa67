"""Random values for a check, such that a wrong result differs from the right one.

Every parameter is random, including norm scales (1 +- 0.2) and biases (0.1 of a normal). Matrices have a standard
deviation of 0.6 / sqrt(last extent), so that activations stay near 1. Buffers and constants have the program's own
values (rotary frequencies, masks). A buffer without a value is 1 +- 0.2 if floating, 0 if integer, true if boolean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum

import torch
from torch import Tensor

from ..errors import RunError
from ..program.arguments import DTYPES, Json

IGNORED_SHARE = 0.125
"""The share of labels that get the ignored value, where the program's arguments have an "ignore_index"."""
_SPREAD = 0.2
_BIAS = 0.1
_GAIN = 0.6
_MASKED_SHARE = 0.25


class Unknown(StrEnum):
    """What to do with an integer input of which nobody says what values it may take."""

    REFUSE = "refuse"
    GUESS = "guess"
    """Draw from [0, 2), which is a valid index of almost anything: for steps that claim nothing."""


def parameter(name: str, shape: Sequence[int], dtype: str, random: torch.Generator) -> Tensor:
    """A value for a parameter. Depends on its number of dims and on whether its name ends in "bias"."""
    normal = torch.randn(list(shape), generator=random, dtype=torch.float64)
    if len(shape) >= 2:
        value = normal * (_GAIN / math.sqrt(max(1, shape[-1])))
    elif name.endswith("bias"):
        value = normal * _BIAS
    else:
        value = near_one(shape, random)
    return value.to(DTYPES[dtype])


def buffer(shape: Sequence[int], dtype: str, random: torch.Generator) -> Tensor:
    """A value for a buffer of which the program has none."""
    kind = DTYPES[dtype]
    if kind.is_floating_point:
        return near_one(shape, random).to(kind)
    if kind.is_complex:
        return torch.polar(near_one(shape, random), near_one(shape, random)).to(kind)
    return torch.ones(list(shape), dtype=kind) if kind is torch.bool else torch.zeros(list(shape), dtype=kind)


def user_input(shape: Sequence[int], dtype: str, options: Mapping[str, Json], random: torch.Generator) -> Tensor:
    """A value for an input. `options` may have "low" and "high" of integers (default 0, 2), "named" and "ignore_index".

    Integers have the named ones among them, the lowest and the highest. An "ignore_index" of true stands for -100.
    """
    kind = DTYPES[dtype]
    if kind.is_floating_point:
        return torch.randn(list(shape), generator=random, dtype=torch.float64).to(kind)
    if kind.is_complex:
        return torch.randn(list(shape), generator=random, dtype=torch.complex128).to(kind)
    if kind is torch.bool:
        return torch.rand(list(shape), generator=random) >= _MASKED_SHARE
    low, high = _integer(options, "low", 0), _integer(options, "high", 2)
    value = torch.randint(low, high, list(shape), generator=random, dtype=kind)
    wanted = torch.tensor(_wanted(options, low, high)[: value.numel() // 2], dtype=kind)
    value.view(-1)[torch.randperm(value.numel(), generator=random)[: len(wanted)]] = wanted
    if options.get("ignore_index") not in (None, False):
        ignored = -100 if options["ignore_index"] is True else _integer(options, "ignore_index", -100)
        value[torch.rand(list(shape), generator=random) < IGNORED_SHARE] = ignored
    return value


def tangent(shape: Sequence[int], random: torch.Generator) -> Tensor:
    """A value for the gradient of an output: of either sign, between 1.5 and 2.5 in magnitude, so never 1."""
    magnitude = 1.5 + torch.rand(list(shape), generator=random, dtype=torch.float64)
    negative = torch.rand(list(shape), generator=random) < 0.5
    return torch.where(negative, -magnitude, magnitude)


def near_one(shape: Sequence[int], random: torch.Generator) -> Tensor:
    """Uniform in 1 +- 0.2, for scales and variances."""
    return 1 + _SPREAD * (2 * torch.rand(list(shape), generator=random, dtype=torch.float64) - 1)


def require_range(name: str, dtype: str, options: Mapping[str, Json]) -> None:
    """Raise RunError E0349 for an integer input without a range."""
    kind = DTYPES[dtype]
    is_integer = not (kind.is_floating_point or kind.is_complex or kind is torch.bool)
    if is_integer and not isinstance(options.get("high"), int):
        raise RunError(
            "E0349",
            f"the values that integer input '{name}' may take are unknown",
            help=f"give them with --range '{name}=LO:HI', for LO to HI - 1 (in Python check(.., ranges=..))",
        )


def _wanted(options: Mapping[str, Json], low: int, high: int) -> list[int]:
    """Integers that are drawn on purpose: those that the model treats apart, the lowest and the highest."""
    named = options.get("named")
    stated = [value for value in named if isinstance(value, int)] if isinstance(named, list | tuple) else []
    return [value for value in dict.fromkeys((*stated, low, high - 1)) if low <= value < high]


def _integer(options: Mapping[str, Json], key: str, default: int) -> int:
    value = options.get(key, default)
    return value if isinstance(value, int) else default
