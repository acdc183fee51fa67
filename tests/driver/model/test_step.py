"""`model.step(...)`: forward and backward in one call; and what a plan with a pipeline asks of a model."""

from __future__ import annotations

import pytest
import stretto
import torch
from stretto.diagnostics import StrettoError
from torch import Tensor, nn

PIPELINE = "mesh (pp=2)\npipeline over pp { schedule 1f1b  microbatches 2 }"


class Squares(nn.Module):
    """loss = sum((x @ w)^2), and the product."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, 2, dtype=torch.float64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x @ self.w
        return (y**2).sum(), y


def rows() -> Tensor:
    return torch.arange(12, dtype=torch.float64).reshape(4, 3)


@pytest.mark.parametrize("train", [True, False])
def test_a_step_adds_the_scaled_gradients_and_returns_the_loss(train: bool) -> None:
    plain = Squares()
    loss = plain(rows())[0]
    (3 * loss).backward()
    model = stretto.compile(Squares(), plan="mesh (dp=2)").train(train)
    with torch.no_grad():
        result = model.step(x=rows(), scale=3.0)
    assert torch.equal(result, loss.detach())
    assert not result.requires_grad
    torch.testing.assert_close(model.w.grad, plain.w.grad, rtol=1e-12, atol=0)
    model.step(rows(), scale=3.0)
    torch.testing.assert_close(model.w.grad, 2 * plain.w.grad, rtol=1e-12, atol=0)


def test_steps_inside_no_sync_wait_for_the_one_outside() -> None:
    model, plain = stretto.compile(Squares(), plan="mesh (dp=2)"), Squares()
    with model.no_sync():
        model.step(rows())
    assert model.w.grad is None
    model.step(rows())
    (2 * plain(rows())[0]).backward()
    torch.testing.assert_close(model.w.grad, plain.w.grad, rtol=1e-12, atol=0)


def test_a_model_with_a_step_of_its_own_keeps_it() -> None:
    class Own(Squares):
        def step(self) -> str:
            return "mine"

    assert stretto.compile(Own(), plan="mesh (dp=2)").step() == "mine"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(3, 2), r"results of shapes \[4, 2\]"),
        (nn.Linear(3, 2).requires_grad_(False), "no tensor with requires_grad"),
    ],
)
def test_a_step_without_a_scalar_loss_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(StrettoError, match=message) as caught:
        stretto.compile(model, plan="mesh (dp=2)").step(torch.ones(4, 3))
    assert caught.value.code == "E0617"


def test_a_pipeline_whose_forward_gives_no_scalar_loss_is_refused() -> None:
    model = stretto.compile(nn.Linear(3, 2), plan=PIPELINE)
    with pytest.raises(StrettoError) as caught:
        model(torch.ones(4, 3))
    assert caught.value.code == "E0616"
    assert "no scalar loss to train with, but its result of shape [4, 2]" in caught.value.render()
    assert "pipeline over pp" in caught.value.render()
