"""Values inside operations: what ops and their decompositions compute, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from stretto.ir.equivalence.subvalues import Subvalues
from torch import Tensor


def kept(tensors: list[Tensor], value: Tensor) -> bool:
    return any(each.shape == value.shape and torch.allclose(each, value.to(each.dtype)) for each in tensors)


def test_the_sum_inside_a_mean_is_kept() -> None:
    values: list[Tensor] = []
    x = torch.arange(12.0).reshape(3, 4)
    with Subvalues(values.append):
        x.mean(1)
    assert kept(values, x.sum(1))


@pytest.mark.parametrize(
    "allocate",
    [
        lambda x: torch.empty(3, 4),
        lambda x: torch.empty_like(x),
        lambda x: torch.empty_strided((3, 4), (4, 1)),
        lambda x: torch.empty_permuted((3, 4), (0, 1)),
        lambda x: x.new_empty(3, 4),
        lambda x: x.new_empty_strided((3, 4), (4, 1)),
        lambda x: torch.empty(0).resize_(3, 4),
    ],
)
def test_memory_that_nothing_has_filled_is_no_value(allocate: Callable[[Tensor], Tensor]) -> None:
    values: list[Tensor] = []
    x = torch.ones(3, 4)
    with Subvalues(values.append):
        allocate(x)
        filled = allocate(x).fill_(3.0)
    assert kept(values, filled) and len(values) == 1


@pytest.mark.parametrize(
    "part",
    [
        lambda x: x[:2],
        lambda x: x.narrow(0, 0, 2),
        lambda x: x.t(),
        lambda x: x.reshape(2, 6),
        lambda x: x.view(12)[:4],
        lambda x: x.detach().unsqueeze(0),
        lambda x: x.split(2)[0],
        lambda x: x.unbind(0)[0],
        lambda x: x.as_strided((2, 2), (4, 1)),
    ],
)
def test_a_view_of_memory_that_nothing_has_filled_is_no_value(part: Callable[[Tensor], Tensor]) -> None:
    values: list[Tensor] = []
    with Subvalues(values.append):
        view = part(torch.empty(3, 4))
        assert values == []
        view.copy_(torch.full_like(view, 3.0))
    assert kept(values, torch.full_like(view, 3.0))


def test_a_view_of_a_value_is_a_value() -> None:
    values: list[Tensor] = []
    x = torch.arange(12.0).reshape(3, 4)
    with Subvalues(values.append):
        (x + 1)[:2].t()
    assert kept(values, x[:2].t() + 1)
