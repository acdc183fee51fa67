"""The effect of rounding on each tensor of a check.

*By perturbation*, where the program's dtype has a tolerance: the reference runs again on parameters and inputs that
differ in their last places. A tensor that this changes by more than the tolerance, such as the gradient of a key's bias
in attention, which is zero but for rounding, is compared with that change. (`ir/equivalence/rounding.py` does the same
for modules.)

*By a run in float64*, for short floats: the error of the program against it may be a few times that of eager mode in
the program's own dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..program.arguments import DTYPES
from ..program.program import Program
from ..program.reference import raised_dtype
from .model_and_program import Key
from .recording import Recording

MARGIN = 16
"""A difference of up to this many times the effect of perturbed inputs counts as rounding."""
_WIDTH = 8
"""The width of the relative change of an element, in units of the dtype's epsilon: up to 4 of them, up or down."""

Changes = Mapping[tuple[str, str], float]
"""By (kind, name): a largest absolute difference; infinite where one of two elements is not finite."""


def perturbation(program: Program, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """A function that moves each element of a floating tensor by a few units in its last place."""
    random = torch.Generator().manual_seed(seed)
    width = _WIDTH * float(torch.finfo(DTYPES[program.manifest.dtype]).eps)

    def moved(value: Tensor) -> Tensor:
        share = torch.rand(value.shape, generator=random, dtype=torch.float64) - 0.5
        return (value.detach().double() * (1 + width * share)).to(value.dtype)

    return moved


def perturbed(values: Mapping[Key, Tensor], moved: Callable[[Tensor], Tensor]) -> dict[Key, Tensor]:
    """The initial values with perturbed parameters. Buffers and constants stay: they may hold the largest number."""
    return {
        key: moved(value) if key[0] == "parameter" and value.dtype.is_floating_point else value
        for key, value in values.items()
    }


def in_float64(program: Program, values: Mapping[Key, Tensor]) -> tuple[Program, dict[Key, Tensor]]:
    """The program and the initial values for a reference in float64."""
    raised = replace(program, manifest=replace(program.manifest, dtype="float64"), initial=program.weights)
    return raised, {key: raise_float(value) for key, value in values.items()}


def raise_float(value: Tensor) -> Tensor:
    """The tensor with a floating dtype raised to float64."""
    return value.to(raised_dtype(value.dtype))


def changes(before: Recording, after: Recording) -> Changes:
    """The largest difference of each tensor that both recordings have."""
    known = {(kind, name): tensor for kind, name, tensor in after.tensors()}
    return {
        (kind, name): largest_difference(tensor, known[kind, name])
        for kind, name, tensor in before.tensors()
        if (kind, name) in known
    }


def largest_changes(runs: Iterable[Changes]) -> Changes:
    """The largest change of each tensor over some perturbed runs."""
    largest: dict[tuple[str, str], float] = {}
    for run in runs:
        for key, change in run.items():
            largest[key] = max(largest.get(key, 0.0), change)
    return largest


def largest_difference(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference; infinite where shapes or the places of infinities and NaN differ."""
    first, second = a.detach().double(), b.detach().double()
    if first.shape != second.shape:
        return float("inf")
    finite = first.isfinite()
    if not torch.equal(finite, second.isfinite()):
        return float("inf")
    return float((first - second)[finite].abs().max()) if bool(finite.any()) else 0.0
