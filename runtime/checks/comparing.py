"""Compare one tensor of a program with the reference: within a tolerance, or a bound from the error of eager mode."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .report import EAGER_FACTOR, CheckRow, Verdict
from .rounding import MARGIN, largest_difference

_UNJUDGEABLE = 0.25
"""The error of eager mode, relative to float64, from which on a tensor is nothing but rounding."""
_FLOOR = 2
"""An error of so many units of the dtype's epsilon is always accepted: eager mode may be exact by chance."""
_ABSOLUTE = "the error is absolute"


def compare(
    kind: str, name: str, reference: Tensor, value: Tensor, tolerance: float, change: float = 0.0, floor: float = 0.0
) -> CheckRow:
    """The row of one tensor in a dtype with a tolerance.

    `change` is the largest change of the reference when its inputs change in their last places. `floor` is the rounding
    of the largest tensor of this kind, which is accepted where the reference is zero.
    """
    row = unless_comparable(kind, name, reference, value)
    if row is not None:
        return row
    scale, difference = magnitude(reference), largest_difference(value, reference)
    is_rounding = change > 0 and difference <= MARGIN * change
    if scale == 0:
        verdict = Verdict.NOT_CHECKED if is_rounding or difference <= floor else Verdict.DIFFERS
        return CheckRow(kind, name, difference, verdict, f"the reference is zero; {_ABSOLUTE}")
    if difference <= tolerance * scale:
        return CheckRow(kind, name, difference / scale, Verdict.EQUAL)
    if is_rounding:
        return CheckRow(kind, name, difference, Verdict.NOT_CHECKED, f"rounding alone changes it as much; {_ABSOLUTE}")
    return CheckRow(kind, name, difference / scale, Verdict.DIFFERS)


def compare_short(
    kind: str,
    name: str,
    exact: Tensor,
    eager: Tensor,
    value: Tensor,
    epsilon: float,
    floor: float = 0.0,
    elsewhere: float = 0.0,
) -> CheckRow:
    """The row of one tensor in a short dtype: its error against float64 (`exact`) is bounded by that of `eager`.

    `epsilon` is that of the dtype; `floor` is as for `compare`; `elsewhere` is the error of eager mode for inputs that
    differ in their last places, where the tensor is nothing but rounding.
    """
    row = unless_comparable(kind, name, exact, value)
    if row is not None:
        return row
    scale, own, accepted = magnitude(exact), largest_difference(eager, exact), accepted_error(exact, eager, epsilon)
    error = largest_difference(value, exact)
    if not math.isfinite(own):
        return CheckRow(kind, name, math.inf, Verdict.DIFFERS, "eager mode has values that are not finite")
    if own > _UNJUDGEABLE * scale:
        is_rounding = error <= MARGIN * max(own, elsewhere)
        note = f"eager mode's own error is as large as the tensor; {_ABSOLUTE}"
        return CheckRow(kind, name, error, Verdict.NOT_CHECKED if is_rounding else Verdict.DIFFERS, note)
    if scale == 0:
        verdict = Verdict.NOT_CHECKED if error <= floor else Verdict.DIFFERS
        return CheckRow(kind, name, error, verdict, f"the reference is zero; {_ABSOLUTE}")
    if error <= accepted:
        return CheckRow(kind, name, error / scale, Verdict.EQUAL)
    note = f"the error of eager mode is {own / scale:.1e}, and up to {accepted / scale:.1e} is accepted"
    return CheckRow(kind, name, error / scale, Verdict.DIFFERS, note)


def accepted_error(exact: Tensor, eager: Tensor, epsilon: float) -> float:
    """The accepted absolute error of a tensor in a short dtype."""
    return max(EAGER_FACTOR * largest_difference(eager, exact), _FLOOR * epsilon * magnitude(exact))


def magnitude(tensor: Tensor) -> float:
    """The largest magnitude of an element; 0 without elements."""
    return float(tensor.detach().double().abs().max()) if tensor.numel() else 0.0


def unless_comparable(kind: str, name: str, reference: Tensor, value: Tensor) -> CheckRow | None:
    """The row of a tensor whose shape or values rule out a comparison."""
    if reference.shape != value.shape:
        note = f"shape {list(value.shape)}, the reference has {list(reference.shape)}"
        return CheckRow(kind, name, math.inf, Verdict.DIFFERS, note)
    if reference.numel() == 0:
        return CheckRow(kind, name, 0.0, Verdict.NOT_CHECKED, "it has no elements")
    for tensor, owner in ((value, "the program"), (reference, "the reference")):
        if not bool(torch.isfinite(tensor).all()):
            return CheckRow(kind, name, math.inf, Verdict.DIFFERS, f"{owner} has values that are not finite")
    return None
