"""native_layer_norm becomes nn.layer_norm, whichever of weight, bias and gradients are there."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from .steps import assert_kept, raised, step

GENERATOR = torch.Generator().manual_seed(0)
X, GRAD = (torch.randn(2, 3, 8, generator=GENERATOR, dtype=torch.float64) for _ in range(2))
WEIGHT, BIAS = (torch.randn(8, generator=GENERATOR, dtype=torch.float64) for _ in range(2))


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, (8,), weight, bias, 1e-5)


def plain(x: Tensor) -> Tensor:
    return F.layer_norm(x, (3, 8), eps=1e-6)


@pytest.mark.parametrize("trained", [(0, 1, 2), (0,), (1, 2), (0, 1)])
def test_an_affine_norm_is_raised_and_keeps_its_values(trained: tuple[int, ...]) -> None:
    assert raised(step(affine, (X, WEIGHT, BIAS), trained)) == ["nn.layer_norm", "nn.layer_norm_backward"]
    assert_kept(step(affine, (X, WEIGHT, BIAS), trained), (X, WEIGHT, BIAS, GRAD))


def test_a_norm_without_weight_over_two_dims_is_raised_and_keeps_its_values() -> None:
    assert raised(step(plain, (X,), (0,))) == ["nn.layer_norm", "nn.layer_norm_backward"]
    assert_kept(step(plain, (X,), (0,)), (X, GRAD))
