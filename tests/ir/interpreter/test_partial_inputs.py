"""Inputs that are partial: what the ranks are given combines to the input, and no rank's part can pass for it."""

from __future__ import annotations

import pytest
import torch
from stretto.ir.interpreter.cutting import cut, join
from stretto.ir.interpreter.grid import Grid
from stretto.ir.interpreter.padding import Padding
from stretto.ir.placement import Partial, Reduce
from stretto.ir.types import TensorType

GRID = Grid((("dp", 2), ("tp", 3)))
HOWS = [(how, None) for how in Reduce] + [(Reduce.SUM, how) for how in Reduce] + [(Reduce.MAX, Reduce.SUM)]
"""What is over "tp", and over "dp" where that is partial too."""


def partial(dtype: torch.dtype, tp: Reduce, dp: Reduce | None) -> TensorType:
    pairs = [("tp", Partial(tp)), *([("dp", Partial(dp))] if dp else [])]
    return TensorType(dtype, (4, 3), tuple(sorted(pairs)))


@pytest.mark.parametrize(("tp", "dp"), HOWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_parts_combine_to_the_input_to_the_last_bit(dtype: torch.dtype, tp: Reduce, dp: Reduce | None) -> None:
    type_ = partial(dtype, tp, dp)
    whole = (torch.randn(4, 3, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    parts = [cut(whole, type_, rank, GRID, Padding.NAN) for rank in range(GRID.ranks)]
    assert torch.equal(join(parts, type_, GRID, "x"), whole)
    assert all(part.dtype is dtype and not torch.equal(part, whole) for part in parts)


def test_a_positive_sum_is_no_maximum_of_its_parts() -> None:
    type_ = partial(torch.float64, Reduce.SUM, None)
    whole = torch.rand(4, 3, dtype=torch.float64) + 1
    parts = torch.stack([cut(whole, type_, rank, GRID, Padding.NAN) for rank in range(3)])
    assert not (parts.amax(0) == whole).any() and not (parts.amin(0) == whole).any()
    assert not (parts == whole).any()


def test_infinities_and_padding_are_split_without_becoming_something_else() -> None:
    type_ = partial(torch.float32, Reduce.SUM, None)
    whole = torch.full((4, 3), float("inf"))
    parts = [cut(whole, type_, rank, GRID, Padding.NAN) for rank in range(GRID.ranks)]
    assert torch.equal(join(parts, type_, GRID, "x"), whole)
