"""Are replicas equal? A result said to be replicated, that differs between ranks, lacks a reduction."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import RunError
from ..program.records import Output

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6}
"""Largest difference between replicas, relative to the largest magnitude; other floats 1e-2, integers none."""


def compare_replicas(result: Output, kept: Tensor, other: Tensor, rank: int) -> None:
    """Raise RunError E0330 where the tensor of `rank` is not the one that was kept."""
    if kept.numel() == 0 or torch.equal(kept, other):
        return
    if kept.shape == other.shape and kept.is_floating_point():
        scale = float(kept.nan_to_num(0.0, 0.0, 0.0).abs().max())
        tolerance = TOLERANCES.get(kept.dtype, 1e-2)
        if torch.allclose(kept, other, rtol=0.0, atol=tolerance * scale, equal_nan=True):
            return
    what = f"the {result.kind} '{result.name}'" if result.name else f"{result.kind} {result.index}"
    raise RunError(
        "E0330",
        f"{what} should be the same on all replicas, but rank {rank} has another value{_how_far(kept, other)}",
        help="a reduction is missing from the program: please report it with the plan",
    )


def _how_far(kept: Tensor, other: Tensor) -> str:
    if kept.shape != other.shape:
        return f": shape {list(other.shape)} instead of {list(kept.shape)}"
    difference = float((kept.double() - other.double()).abs().max())
    return f": largest difference {difference:.3g}, largest magnitude {float(kept.double().abs().max()):.3g}"
