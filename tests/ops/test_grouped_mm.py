"""Stretto's own product of rows in groups: values, gradients, and the shapes that its fake kernel gives."""

from __future__ import annotations

import pytest
import torch
from stretto.ops.grouped_mm import GROUPED_MM
from torch.nn import functional as F


def operands(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(*shape, generator=generator, dtype=dtype, requires_grad=True) for shape in ((9, 8), (4, 8, 16))
    )


@pytest.mark.parametrize("ends", [[2, 2, 5, 9], [0, 9, 9, 9]])
def test_it_is_torch_s_own_in_float32(ends: list[int]) -> None:
    rows, weight = operands(torch.float32)
    offs = torch.tensor(ends, dtype=torch.int32)
    wanted, got = F.grouped_mm(rows, weight, offs=offs), GROUPED_MM(rows, weight, offs)
    tangent = torch.randn_like(wanted)
    torch.testing.assert_close(got, wanted)
    for mine, theirs in zip(*(torch.autograd.grad(y, (rows, weight), tangent) for y in (got, wanted)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_rows_behind_the_last_group_give_zeros_and_get_none_of_the_gradient() -> None:
    rows, weight = operands(torch.float64)
    offs = torch.tensor([2, 2, 4, 7])
    assert torch.autograd.gradcheck(lambda x, w: GROUPED_MM(x, w, offs), (rows, weight))
    assert not GROUPED_MM(rows, weight, offs)[7:].any()


def test_the_fake_kernels_give_the_shapes() -> None:
    rows, weight = (x.detach().to("meta") for x in operands(torch.float64))
    offs = torch.empty(4, dtype=torch.int64, device="meta")
    result = GROUPED_MM(rows, weight, offs)
    gradients = torch.ops.stretto.grouped_mm_backward(rows, weight, offs, result)
    assert (result.shape, *(x.shape for x in gradients)) == ((9, 16), rows.shape, weight.shape)
