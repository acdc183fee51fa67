"""Values for a check: random enough that a wrong result cannot look right.

Every parameter is random, norm scales (1 +- 0.2) and biases (0.1 of a normal) too; matrices have a standard deviation
of 0.6 / sqrt(last extent), so that activations stay near 1. Buffers and constants keep the values the program came
with (rotary frequencies, masks); a floating buffer without one is 1 +- 0.2, an integer one 0, a boolean one true.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..program.arguments import DTYPES, Json

IGNORED_SHARE = 0.125
"""Which share of the labels is set to the ignored value, where the program's arguments name one."""
_SPREAD = 0.2
_BIAS = 0.1
_GAIN = 0.6
_MASKED_SHARE = 0.25


def parameter(name: str, shape: Sequence[int], dtype: str, random: torch.Generator) -> Tensor:
    """A value for a parameter, by its shape, and by whether its name ends in "bias"."""
    normal = torch.randn(list(shape), generator=random, dtype=torch.float64)
    if len(shape) >= 2:
        value = normal * (_GAIN / math.sqrt(max(1, shape[-1])))
    elif name.endswith("bias"):
        value = normal * _BIAS
    else:
        value = near_one(shape, random)
    return value.to(DTYPES[dtype])


def buffer(shape: Sequence[int], dtype: str, random: torch.Generator) -> Tensor:
    """A value for a buffer that the program came without."""
    kind = DTYPES[dtype]
    if kind.is_floating_point:
        return near_one(shape, random).to(kind)
    return torch.ones(list(shape), dtype=kind) if kind is torch.bool else torch.zeros(list(shape), dtype=kind)


def user_input(shape: Sequence[int], dtype: str, about: Mapping[str, Json], random: torch.Generator) -> Tensor:
    """A value for an input. `about` may say "low" and "high" of integers (0, 2), and an "ignore_index" (true: -100)."""
    kind = DTYPES[dtype]
    if kind.is_floating_point:
        return torch.randn(list(shape), generator=random, dtype=torch.float64).to(kind)
    if kind is torch.bool:
        return torch.rand(list(shape), generator=random) >= _MASKED_SHARE
    value = torch.randint(_whole(about, "low", 0), _whole(about, "high", 2), list(shape), generator=random, dtype=kind)
    if about.get("ignore_index") not in (None, False):
        ignored = -100 if about["ignore_index"] is True else _whole(about, "ignore_index", -100)
        value[torch.rand(list(shape), generator=random) < IGNORED_SHARE] = ignored
    return value


def near_one(shape: Sequence[int], random: torch.Generator) -> Tensor:
    """Uniform in 1 +- 0.2: a scale, or a variance."""
    return 1 + _SPREAD * (2 * torch.rand(list(shape), generator=random, dtype=torch.float64) - 1)


def _whole(about: Mapping[str, Json], key: str, otherwise: int) -> int:
    value = about.get(key, otherwise)
    return value if isinstance(value, int) else otherwise
