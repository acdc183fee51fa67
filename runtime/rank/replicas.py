"""Comparison of replicas: a result that is placed as replicated but differs between ranks lacks a reduction."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import RunError
from ..program.records import Output

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6}
"""Largest difference between replicas, relative to the largest magnitude; other floats 1e-2, integers none."""


def compare_replicas(output: Output, primary: Tensor, other: Tensor, rank: int) -> None:
    """Raise RunError E0330 where the replica of `rank` differs from the primary one by more than rounding."""
    if primary.numel() == 0 or torch.equal(primary, other):
        return
    if primary.shape == other.shape and primary.is_floating_point():
        scale = float(primary.nan_to_num(0.0, 0.0, 0.0).abs().max())
        tolerance = TOLERANCES.get(primary.dtype, 1e-2)
        if torch.allclose(primary, other, rtol=0.0, atol=tolerance * scale, equal_nan=True):
            return
    name = f"the {output.kind} '{output.name}'" if output.name else f"{output.kind} {output.index}"
    raise RunError(
        "E0330",
        f"{name} should be the same on all replicas, but rank {rank} has another value: {_difference(primary, other)}",
        help="a reduction is missing from the program: please report it with the plan",
    )


def _difference(primary: Tensor, other: Tensor) -> str:
    if primary.shape != other.shape:
        return f"shape {list(other.shape)} instead of {list(primary.shape)}"
    difference = float((primary.double() - other.double()).abs().max())
    return f"largest difference {difference:.3g}, largest magnitude {float(primary.double().abs().max()):.3g}"
