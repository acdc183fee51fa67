"""The regimes of values in which a check runs a program once more: large, negative, saturating and others.

A softmax may subtract any number as long as nothing overflows, and a maximum with zeros of padding is right as long as
something is positive, or nothing far below. One forward and backward each is compared; the program is compiled already.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import torch
from torch import Tensor

from .model_and_program import Key

_LARGE = 1e3
_SATURATING, _OVERFLOWING = 8.0, 1e3
_SUNKEN = 300.0
"""Factor of matrices and biases: logits whose exponential is 0 in float64."""


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
    TALL_BELOW = "tall matrices below 0"
    """Large matrices of one sign: below 0 those with more rows than columns, such as embeddings and heads of large
    vocabularies. Inputs and vectors are positive, biases large, so that whole rows of logits lie far below 0, and
    others far above."""
    WIDE_BELOW = "wide matrices below 0"
    """The same with the other signs, for heads of few classes."""
    ZEROS = "zeros"
    """The first and the last row of each floating input are exactly 0, and so are biases: where a derivative is none,
    as that of a root, of a magnitude or of a quotient, the model decides what it is."""
    HIDDEN_ROWS = "hidden rows"
    """Of each mask of booleans, the first row is false, so that a query sees no key, and the last is true."""
    EQUAL_ROWS = "equal rows"
    """All rows of a matrix are the first one, and so are those of floating inputs: what is chosen by the largest logit,
    such as an expert, is chosen by all tokens alike, so that the others get no rows."""

    def values(self, values: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
        """The initial values of a check in this regime; buffers and constants stay as they are."""
        return {(kind, name): self._parameter(kind, name, value) for (kind, name), value in values.items()}

    def input(self, value: Tensor) -> Tensor:
        """An input in this regime; itself where nothing changes."""
        if value.dtype == torch.bool:
            return _hidden(value) if self is Regime.HIDDEN_ROWS and value.dim() > 1 else value
        if not value.dtype.is_floating_point:
            return value
        match self:
            case Regime.LARGE:
                return value * _LARGE
            case Regime.NEGATIVE:
                return -value.abs()
            case Regime.TALL_BELOW | Regime.WIDE_BELOW:
                return value.abs()
            case Regime.EQUAL_ROWS if value.dim():
                return value[:1].expand_as(value).clone()
            case Regime.ZEROS if value.dim():
                zeros = value.clone()
                zeros[0], zeros[-1] = 0, 0
                return zeros
        return value

    def _parameter(self, kind: str, name: str, value: Tensor) -> Tensor:
        if kind != "parameter" or not value.dtype.is_floating_point:
            return value
        match self:
            case Regime.NEGATIVE if name.endswith("bias"):
                return -value.abs()
            case Regime.ZEROS if name.endswith("bias"):
                return torch.zeros_like(value)
            case Regime.EQUAL_ROWS if value.dim() >= 2:
                return value[:1].expand_as(value).clone()
            case Regime.SATURATING if value.dim() >= 2:
                return value * _SATURATING
            case Regime.OVERFLOWING if value.dim() >= 2:
                return value * _OVERFLOWING
            case Regime.TALL_BELOW | Regime.WIDE_BELOW if value.dim() >= 2:
                is_below = (value.shape[0] > value.shape[1]) is (self is Regime.TALL_BELOW)
                return value.abs() * (-_SUNKEN if is_below else _SUNKEN)
            case Regime.TALL_BELOW | Regime.WIDE_BELOW:
                return value.abs() * (_SUNKEN if name.endswith("bias") else 1.0)
        return value


def _hidden(mask: Tensor) -> Tensor:
    rows = mask.clone().flatten(0, -2)
    rows[0], rows[-1] = False, True
    return rows.view(mask.shape)


OTHERS = tuple(regime for regime in Regime if regime is not Regime.NORMAL)
"""All regimes but that of the optimizer's steps."""
FINITE = (Regime.OVERFLOWING, Regime.TALL_BELOW, Regime.WIDE_BELOW, Regime.EQUAL_ROWS)
"""Regimes in which rounding has no bound, as at the steps of saturated functions and at ties: what is judged is that
values stay finite."""
