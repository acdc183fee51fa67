"""A pipeline's loss may add constants to sums over microbatches and scale them; a constant counts once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import stretto
import torch
from stretto.diagnostics import StrettoError
from torch import Tensor, nn

from ...subsets import some

TANGENT = 3.0
PLANS = {
    "pp": "mesh (pp=2)\npipeline over pp { microbatches 4 }",
    "pp and dp": "mesh (pp=2, dp=2)\npipeline over pp { microbatches 2 }\nshard inputs batch over dp",
}
LOSSES: dict[str, Callable[[Tensor], Any]] = {
    "a sum that starts from 0": lambda h: sum([h.pow(2).mean(), h.abs().mean()]),
    "a sum of three": lambda h: sum([h.pow(2).mean(), h.abs().sum(), h.mean()]),
    "a constant added": lambda h: h.pow(2).mean() + 0.5,
    "subtracted from a constant": lambda h: 1 - h.pow(2).mean(),
    "a constant, a quotient, another sum": lambda h: (h.pow(2).mean() + 0.5) / 3 - h.sum(),
    "two sums with constants": lambda h: (h.pow(2).sum() - 0.5) - (h.abs().mean() + 0.25),
    "a constant times alpha": lambda h: torch.add(h.pow(2).mean(), 2.0, alpha=3) + h.mean(),
    "a tensor added": lambda h: torch.tensor(0.5, dtype=h.dtype) + h.pow(2).mean() + h.mean(),
    "a vector of sums": lambda h: (h.pow(2).mean(0) + 0.5).sum() + h.mean(),
}


class Net(nn.Module):
    """Four layers and a loss."""

    def __init__(self, loss: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.loss = loss

    def forward(self, x: Tensor) -> Any:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.loss(x)


def batch() -> Tensor:
    return torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("plan", some("pp and dp", "pp"))
@pytest.mark.parametrize("name", LOSSES)
def test_an_affine_loss_of_sums_over_microbatches_is_that_of_the_batch(name: str, plan: str) -> None:
    torch.manual_seed(0)
    plain = Net(LOSSES[name]).double()
    model = stretto.compile(copy.deepcopy(plain), plan=PLANS[plan])
    expected, actual = plain(batch()), model(batch())
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    (TANGENT * expected).backward()
    (TANGENT * actual).backward()
    for mine, eagers in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, eagers.grad, rtol=1e-11, atol=1e-12)


def refused(loss: Callable[[Tensor], Any]) -> StrettoError:
    with pytest.raises(StrettoError) as caught:
        stretto.compile(Net(loss).double(), plan=PLANS["pp"])(batch())
    return caught.value


@pytest.mark.parametrize("loss", [lambda h: h.mean().sqrt(), lambda h: (h.mean() + 0.5).pow(2)], ids=["root", "square"])
def test_a_loss_that_is_not_affine_in_its_sums_is_refused_with_what_a_loss_may_be(
    loss: Callable[[Tensor], Any],
) -> None:
    error = refused(loss)
    assert error.code == "E0456" and "gpipe" in error.render()


def test_a_standard_deviation_beside_the_loss_is_sent_outside_of_the_forward() -> None:
    error = refused(lambda h: {"loss": h.pow(2).mean(), "metric": h.detach().std()})
    assert error.code == "E0403" and "outside of the forward" in error.help


def test_a_second_result_that_wants_a_gradient_is_to_be_detached() -> None:
    error = refused(lambda h: {"loss": h.pow(2).mean(), "metric": h.mean()})
    assert error.code == "E0616" and ".detach()" in error.help
