"""Which results are nothing but rounding: what should be zero, and is the rest of a sum that cancels.

The gradient of a key's bias in an attention is one: the softmax does not see the bias, so that its gradient is zero,
and what is computed for it depends on the order of sums alone. To find such results, a module runs once more on inputs
that are a few units in the last place away.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..interpreter.padding import Padding
from ..interpreter.precision import Floats
from ..interpreter.running import run
from ..module import Module

_STEP = 2.0**-49
"""Width of the relative change of an input: up to 4 units in the last place of float64, up or down."""
_MARGIN = 16
"""A difference of up to so many times what a change of inputs makes is taken for rounding."""


def rounding(
    module: Module, inputs: Sequence[Tensor], results: Sequence[Tensor], padding: Padding, max_bytes: int | None
) -> list[float]:
    """How far each of a module's results moves, at the most, when all floating inputs change in their last places."""
    random = torch.Generator().manual_seed(0)
    moved = run(
        module, [_moved(t, random) for t in inputs], floats=Floats.FLOAT64, padding=padding, max_bytes=max_bytes
    )
    return [largest_difference(a, b) for a, b in zip(results, moved, strict=True)]


def is_rounding(before: Tensor, after: Tensor, moved: float, tolerance: float) -> bool:
    """Whether a difference says nothing: rounding alone moves the result by more than the tolerance, and as far.

    `moved` is what `rounding` told of this result, `tolerance` is relative to the result's largest value.
    """
    values = before.double()
    finite = values[values.isfinite()]
    size = float(finite.abs().amax()) if finite.numel() else 0.0
    return moved > tolerance * size and largest_difference(before, after) <= _MARGIN * moved


def largest_difference(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference; inf where one of the two alone is no finite number."""
    if not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    finite = a.isfinite()
    return float((a.double() - b.double())[finite].abs().amax()) if bool(finite.any()) else 0.0


def _moved(value: Tensor, random: torch.Generator) -> Tensor:
    if not value.dtype.is_floating_point:
        return value
    raised = value.double()
    return raised * (1 + _STEP * (torch.rand(raised.shape, generator=random, dtype=torch.float64) - 0.5))
