"""The float64 formula of a function computes the function's values and gradients."""

from __future__ import annotations

import pytest
import torch
from stretto.diagnostics import StrettoError
from stretto.driver.check.float64_kernels import InFloat64
from torch.nn import functional as F


def test_a_product_in_groups_is_as_torch_s_own_in_float32() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(9, 8), torch.randn(3, 8, 4)
    offs = torch.tensor([2, 2, 9], dtype=torch.int32)
    want = F.grouped_mm(a, b, offs=offs)
    with InFloat64():
        output = F.grouped_mm(a.double(), b.double(), offs=offs)
    torch.testing.assert_close(output.float(), want, rtol=1e-5, atol=1e-5)


def test_its_gradients_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    a, b = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 2), (2, 2, 3)))
    with InFloat64():
        assert torch.autograd.gradcheck(
            lambda a, b: F.grouped_mm(a, b, offs=torch.tensor([1, 4], dtype=torch.int32)), (a, b)
        )


def test_a_form_without_a_formula_is_refused_with_a_way_out() -> None:
    rows = torch.ones(2, 3, 4, dtype=torch.float64)
    with pytest.raises(StrettoError, match="grouped_mm") as caught, InFloat64():
        torch.nn.functional.grouped_mm(rows, rows.transpose(1, 2))
    assert caught.value.code == "E0342" and "float32" in caught.value.help
