"""Experts with a capacity on one device: which rows a model's products by expert keep, however they are written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from stretto.runtime.checks.capacity import CappedExperts
from torch import Tensor

EXPERTS = torch.tensor([1, 0, 1, 1, 2, 1, 0, 1])
KEPT = torch.tensor([1, 1, 1, 0, 1, 0, 1, 0]).bool()
"""8 rows, 4 experts: an expert takes 2, the even share."""
ENDS = torch.tensor([2, 7, 8, 8])
GROUPED_KEPT = torch.tensor([1, 1, 1, 1, 0, 0, 0, 1]).bool()
"""The same rows, sorted by expert."""


def _chosen(weight: Tensor, rows: Tensor) -> Tensor:
    return torch.bmm(weight[EXPERTS], rows.unsqueeze(2)).squeeze(2)


def _by_op(weight: Tensor, rows: Tensor) -> Tensor:
    chosen = torch.ops.aten.index.Tensor(weight.transpose(1, 2), [EXPERTS])
    return torch.bmm(rows.unsqueeze(1), chosen).squeeze(1)


def _selected(weight: Tensor, rows: Tensor) -> Tensor:
    return torch.bmm(torch.index_select(weight, 0, EXPERTS), rows.unsqueeze(2)).squeeze(2)


def _in_groups(weight: Tensor, rows: Tensor) -> Tensor:
    return torch.ops.stretto.grouped_mm(rows, weight.transpose(1, 2), ENDS)


@pytest.mark.parametrize(
    ("products", "kept"),
    [(_chosen, KEPT), (_by_op, KEPT), (_selected, KEPT), (_in_groups, GROUPED_KEPT)],
)
def test_rows_behind_the_capacity_get_zeros_and_no_gradient(
    products: Callable[[Tensor, Tensor], Tensor], kept: Tensor
) -> None:
    weight = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    with CappedExperts({"w": weight}, {"w": 1.0}):
        found = products(weight, rows)
    expected = torch.where(kept.unsqueeze(1), products(weight, rows), 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    tangent = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, (weight, rows), tangent), torch.autograd.grad(expected, (weight, rows), tangent),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_cast_of_a_weight_and_a_bias_have_its_capacity_and_other_weights_have_none() -> None:
    weight, bias, other = torch.randn(4, 3, 5), torch.randn(4, 3), torch.randn(4, 3, 5)
    with CappedExperts({"w": weight, "b": bias, "o": other}, {"w": 1.0, "b": 1.0}):
        matrices, biases, others = weight.double()[EXPERTS], bias[EXPERTS], other[EXPERTS]
    assert torch.equal(matrices.flatten(1).any(1), KEPT) and torch.equal(biases.any(1), KEPT)
    assert others.flatten(1).any(1).all()
