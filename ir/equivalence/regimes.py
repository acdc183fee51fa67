"""Input regimes: the ranges of values in which two modules are compared.

Inputs near 1 leave one side of many decisions untaken: a maximum over padding that is filled with 0 is right as long as
something is positive, and an order among equal elements never matters. Each regime moves inputs and parameters to where
another side is taken. `one_sided.py` reports what no regime reaches.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

_LARGE, _TINY = 1e3, 1e-4
_SATURATING = 8.0
"""Factor of matrices: activations and logits of tens, where sigmoid, tanh and softmax are flat."""
_SUNKEN = 300.0
"""Factor of matrices and biases: logits whose exponential is 0 in float64."""
_STEP = 0.25
"""With ties, parameters are multiples of this."""


class Regime(StrEnum):
    """What the floating inputs and parameters of a comparison look like."""

    NORMAL = "normal"
    """Near 1, of either sign."""
    LARGE = "large"
    """Inputs a thousand times as large."""
    TINY = "tiny"
    """Inputs ten thousand times smaller."""
    NEGATIVE = "negative"
    """Inputs and biases below 0."""
    TIES = "ties"
    """Inputs -1, 0 or 1, and matrices of few different values: equal elements in maxima, sorts and comparisons."""
    SATURATING = "saturating"
    """Large matrices, and so extreme logits."""
    TALL_BELOW = "tall matrices below 0"
    """Large matrices of one sign: below 0 those with more rows than columns, such as embeddings and heads of large
    vocabularies. Inputs and vectors are positive, biases large, so that whole rows of logits lie far below 0, and
    others far above."""
    WIDE_BELOW = "wide matrices below 0"
    """The same with the other signs, for heads of few classes."""
    ZEROS = "zeros"
    """The first and the last row of inputs, and all biases, are exactly 0: where derivatives are none."""
    HIDDEN_ROWS = "hidden rows"
    """The first row of masks of booleans is false, so that a query sees no key, and the last is true."""

    def applied(self, kind: str, name: str, value: Tensor) -> Tensor:
        """The value of an argument of this kind and name, in this regime. Tangents and integers stay as they are."""
        if value.dtype == torch.bool and value.dim() > 1 and kind == "input" and self is Regime.HIDDEN_ROWS:
            rows = value.clone().flatten(0, -2)
            rows[0], rows[-1] = False, True
            return rows.view(value.shape)
        if not value.dtype.is_floating_point or kind not in ("input", "parameter"):
            return value
        is_matrix = kind == "parameter" and value.dim() >= 2
        match self:
            case Regime.LARGE if kind == "input":
                return value * _LARGE
            case Regime.TINY if kind == "input":
                return value * _TINY
            case Regime.NEGATIVE if kind == "input" or name.endswith("bias"):
                return -value.abs()
            case Regime.ZEROS if kind == "input" and value.dim():
                zeros = value.clone()
                zeros[0], zeros[-1] = 0, 0
                return zeros
            case Regime.ZEROS if name.endswith("bias"):
                return torch.zeros_like(value)
            case Regime.TIES if kind == "input":
                return value.round().clamp(-1, 1)
            case Regime.TIES if is_matrix:
                return torch.round(value / _STEP) * _STEP
            case Regime.SATURATING if is_matrix:
                return value * _SATURATING
            case Regime.TALL_BELOW | Regime.WIDE_BELOW if is_matrix:
                is_below = (value.shape[0] > value.shape[1]) is (self is Regime.TALL_BELOW)
                return value.abs() * (-_SUNKEN if is_below else _SUNKEN)
            case Regime.TALL_BELOW | Regime.WIDE_BELOW:
                return value.abs() * (_SUNKEN if name.endswith("bias") else 1.0)
        return value


OTHERS = tuple(regime for regime in Regime if regime is not Regime.NORMAL)
"""All regimes but the one in which every pass is compared."""
FINITE = (Regime.TALL_BELOW, Regime.WIDE_BELOW)
"""Those in which rounding has no bound, as at the steps of saturated functions: what is judged is that values stay
finite."""
OF_INPUTS = (Regime.ZEROS, Regime.HIDDEN_ROWS)
"""Those that are about inputs: they are left out where they change none."""
