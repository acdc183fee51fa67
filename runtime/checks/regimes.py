"""The regimes of values in which a check runs a program once more: large, negative, saturating and overflowing.

A softmax may subtract any number as long as nothing overflows, and a maximum with zeros of padding is right as long as
something is positive. One forward and backward each is compared; the program is compiled already.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from torch import Tensor

from .model_and_program import Key

_LARGE = 1e3
_SATURATING, _OVERFLOWING = 8.0, 1e3


class Regime(StrEnum):
    """What floating inputs and parameters look like."""

    NORMAL = "normal"
    """Near 1, of either sign: the regime of the optimizer's steps."""
    LARGE = "large"
    """Inputs a thousand times as large."""
    NEGATIVE = "negative"
    """Inputs and biases below 0."""
    SATURATING = "saturating"
    """Matrices eight times as large: activations and logits of tens, where sigmoid, tanh and softmax are flat."""
    OVERFLOWING = "overflowing"
    """Matrices a thousand times as large: the exponential of a logit overflows unless their maximum is subtracted.

    Rounding grows without bound here: what is judged is that values stay finite.
    """

    def values(self, values: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
        """The initial values of a check in this regime; buffers and constants stay as they are."""
        return {(kind, name): self._parameter(kind, name, value) for (kind, name), value in values.items()}

    def input(self, value: Tensor) -> Tensor:
        """A floating input in this regime."""
        match self:
            case Regime.LARGE:
                return value * _LARGE
            case Regime.NEGATIVE:
                return -value.abs()
        return value

    def _parameter(self, kind: str, name: str, value: Tensor) -> Tensor:
        if kind != "parameter" or not value.dtype.is_floating_point:
            return value
        match self:
            case Regime.NEGATIVE if name.endswith("bias"):
                return -value.abs()
            case Regime.SATURATING if value.dim() >= 2:
                return value * _SATURATING
            case Regime.OVERFLOWING if value.dim() >= 2:
                return value * _OVERFLOWING
        return value


OTHERS = tuple(regime for regime in Regime if regime is not Regime.NORMAL)
"""All regimes but that of the optimizer's steps."""
