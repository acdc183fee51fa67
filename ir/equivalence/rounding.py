"""Detect results that are only rounding error: values that are zero in exact arithmetic.

An example is the gradient of a key's bias in attention: softmax is invariant to the bias, so its gradient is zero, and
the computed value depends only on the order of sums. To find such results, the module runs again on inputs that differ
in their last places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..interpreter.padding import Padding
from ..interpreter.precision import Floats
from ..interpreter.running import run
from ..module import Module

_STEP = 2.0**-49
"""Width of the relative change of an input: up to 4 units in the last place of float64, up or down."""
_MARGIN = 16
"""A difference of up to this many times the effect of perturbed inputs counts as rounding."""


def rounding(
    module: Module, inputs: Sequence[Tensor], results: Sequence[Tensor], padding: Padding, max_bytes: int | None
) -> list[float]:
    """For each result, its largest change when all floating inputs change in their last places."""
    return rounding_of(
        lambda moved: run(module, moved, floats=Floats.FLOAT64, padding=padding, max_bytes=max_bytes), inputs, results
    )


def rounding_of(
    rerun: Callable[[list[Tensor]], list[Tensor]], inputs: Sequence[Tensor], results: Sequence[Tensor]
) -> list[float]:
    """`rounding` of any function of tensors."""
    random = torch.Generator().manual_seed(0)
    perturbed = rerun([_perturbed(tensor, random) for tensor in inputs])
    return [largest_difference(a, b) for a, b in zip(results, perturbed, strict=True)]


def is_rounding(before: Tensor, after: Tensor, moved: float, tolerance: float) -> bool:
    """Whether a difference is rounding: perturbed inputs change the result by more than the tolerance, and as much.

    `moved` is the result's value of `rounding`; `tolerance` is relative to the result's largest value.
    """
    values = before.double()
    finite = values[values.isfinite()]
    size = float(finite.abs().amax()) if finite.numel() else 0.0
    return moved > tolerance * size and largest_difference(before, after) <= _MARGIN * moved


def largest_difference(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference; inf if only one of two elements is finite."""
    if not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    finite = a.isfinite()
    return float((a.double() - b.double())[finite].abs().amax()) if bool(finite.any()) else 0.0


def _perturbed(value: Tensor, random: torch.Generator) -> Tensor:
    if not value.dtype.is_floating_point:
        return value
    wide = value.double()
    return wide * (1 + _STEP * (torch.rand(wide.shape, generator=random, dtype=torch.float64) - 0.5))
