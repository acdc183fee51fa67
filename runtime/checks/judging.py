"""The rows of a check, from what the program and the references computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..program.arguments import DTYPES
from .comparing import accepted_error, compare, compare_short, magnitude
from .optimizer_drift import Drift
from .recording import Recording
from .report import CheckRow, Verdict
from .rounding import MARGIN, Changes

_FLOOR_ROUNDINGS = 64
"""Where the reference is zero, a value below this many roundings of the largest tensor of its kind is zero, too."""


@dataclass(frozen=True)
class WithinTolerance:
    """Rows of a program in a dtype with a tolerance."""

    reference: Recording
    dtype: str
    tolerance: float
    steps: int
    changes: Changes
    """The change of each tensor of the reference when inputs change in their last places; empty where not known."""

    def rows(self, program: Recording) -> list[CheckRow]:
        """A row for each tensor of the reference, and for each gradient that the program alone has."""
        floors, drift = _floors(self.reference, self.dtype), Drift(self.reference, self.steps)
        rows = []
        for kind, name, expected, value in _pairs(self.reference, program):
            change = self.changes.get((kind, name), 0.0)
            row = compare(kind, name, expected, value, self.tolerance, change, floors.get(kind, 0.0))
            if kind == "parameter":
                of_gradient = MARGIN * self.changes.get(("gradient", name), 0.0)
                accepted = self.tolerance * magnitude(expected)
                largest = self.reference.largest.get(name, 0.0)
                row = drift.judge(row, value, accepted, self.tolerance * largest + of_gradient)
            rows.append(row)
        return [*rows, *_of_one_side(self.reference, program)]


@dataclass(frozen=True)
class WithinEagerError:
    """Rows of a program in a short dtype: `exact` is the reference in float64, `eager` the one in the dtype."""

    exact: Recording
    eager: Recording
    dtype: str
    steps: int
    elsewhere: Changes = field(default_factory=dict)
    """The error of eager mode in each tensor when inputs change in their last places; empty where not known."""

    def rows(self, program: Recording) -> list[CheckRow]:
        """See `WithinTolerance.rows`."""
        floors, drift = _floors(self.exact, self.dtype), Drift(self.exact, self.steps)
        eager = {(kind, name): tensor for kind, name, tensor in self.eager.tensors()}
        rows = []
        for kind, name, exact, value in _pairs(self.exact, program):
            own = eager.get((kind, name), torch.zeros_like(exact))
            # A parameter may have a longer dtype than what is computed of it: then its own rounding is smaller.
            epsilon = _epsilon(value) if kind == "parameter" else float(torch.finfo(DTYPES[self.dtype]).eps)
            floor, elsewhere = floors.get(kind, 0.0), self.elsewhere.get((kind, name), 0.0)
            row = compare_short(kind, name, exact, own, value, epsilon, floor, elsewhere)
            if kind == "parameter" and name in self.exact.gradients and name in self.eager.gradients:
                gradients = self.exact.gradients[name], self.eager.gradients[name]
                of_gradient = accepted_error(*gradients, float(torch.finfo(DTYPES[self.dtype]).eps))
                row = drift.judge(row, value, accepted_error(exact, own, epsilon), of_gradient)
            rows.append(row)
        return [*rows, *_of_one_side(self.eager, program)]


def _of_one_side(reference: Recording, program: Recording) -> list[CheckRow]:
    """Gradients that are zeros on one side and None on the other: optimizers pass over None, and decay at zeros."""
    theirs, own = reference.gradients.keys(), program.gradients.keys()
    sides = (
        (own - theirs, "the reference has no gradient (None), and the program zeros"),
        (theirs - own, "the program has no gradient (None), and the reference zeros"),
    )
    return [
        CheckRow("gradient", f"{name} (is there)", math.inf, Verdict.DIFFERS, note)
        for only, note in sides
        for name in sorted(only)
    ]


def _pairs(reference: Recording, program: Recording) -> list[tuple[str, str, Tensor, Tensor]]:
    """(kind, name, expected, value) of all that is compared; a missing gradient is zero."""
    pairs = [("output", name, one, program.outputs[name]) for name, one in reference.outputs.items()]
    for name in dict.fromkeys([*reference.gradients, *program.gradients]):
        expected, value = reference.gradients.get(name), program.gradients.get(name)
        example = expected if expected is not None else value
        assert example is not None, "the name is a key of either"
        zero = torch.zeros_like(example)
        pairs.append(("gradient", name, zero if expected is None else expected, zero if value is None else value))
    pairs += [("parameter", name, reference.parameters[name], value) for name, value in program.parameters.items()]
    pairs += [("buffer", name, value, program.buffers[name]) for name, value in reference.buffers.items()]
    return pairs


def _floors(reference: Recording, dtype: str) -> Mapping[str, float]:
    """By kind: the rounding of its largest tensor."""
    floors: dict[str, float] = {}
    for kind, _, tensor in reference.tensors():
        if tensor.is_floating_point() and bool(torch.isfinite(tensor).all()):
            size = _FLOOR_ROUNDINGS * float(torch.finfo(DTYPES[dtype]).eps) * magnitude(tensor)
            floors[kind] = max(floors.get(kind, 0.0), size)
    return floors


def _epsilon(value: Tensor) -> float:
    return float(torch.finfo(value.dtype).eps) if value.is_floating_point() else 0.0
