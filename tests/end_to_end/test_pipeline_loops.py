"""Training loops with a pipeline, compared with loops without one: masks, dtypes, messages in another dtype."""

from __future__ import annotations

import pytest
import stretto
import torch
from torch import Tensor, nn

from ..subsets import some
from .test_pipeline_features import ROWS, WIDTH, Net, plan

PLAIN = "mesh (dp=1)"


def losses(model: nn.Module, plan_text: str, dtype: torch.dtype, steps: int = 3) -> tuple[list[float], Tensor]:
    """The losses of some steps of AdamW, and a gradient of the first."""
    torch.manual_seed(0)
    compiled = stretto.compile(model.to(dtype), plan=plan_text)
    optimizer = torch.optim.AdamW(compiled.parameters(), lr=1e-3)
    step_losses, first = [], torch.zeros(())
    for step in range(steps):
        random = torch.Generator().manual_seed(step)
        x = torch.randn(ROWS, WIDTH, generator=random, dtype=torch.float64).to(dtype)
        labels = torch.randint(0, 5, (ROWS,), generator=random)
        loss = compiled(x, labels)
        loss.backward()
        if step == 0:
            grad = compiled.layers[0].up.weight.grad
            assert grad is not None
            first = grad.clone()
        optimizer.step()
        optimizer.zero_grad()
        step_losses.append(float(loss.detach()))
    return step_losses, first


def net(drop: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    return Net(drop=drop)


@pytest.mark.parametrize(
    ("schedule", "microbatches", "mesh"), some(("zb-v", 4, ", tp=2"), ("1f1b", 2, ""), ("zb-h1", 8, ""))
)
def test_losses_with_dropout_are_those_without_a_pipeline(schedule: str, microbatches: int, mesh: str) -> None:
    expected, gradient = losses(net(0.4), PLAIN, torch.float64)
    actual, other = losses(net(0.4), plan(schedule, microbatches, mesh=mesh), torch.float64)
    assert actual == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(other, gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("schedule", some("zb-v", "1f1b"))
@pytest.mark.parametrize(("dtype", "error"), some((torch.float32, 1e-5), (torch.bfloat16, 3e-2)))
def test_losses_in_other_dtypes_are_near_those_without_a_pipeline(
    dtype: torch.dtype, error: float, schedule: str
) -> None:
    expected, gradient = losses(net(), PLAIN, dtype)
    actual, other = losses(net(), plan(schedule), dtype)
    assert actual == pytest.approx(expected, rel=error)
    torch.testing.assert_close(other, gradient, rtol=error, atol=error * float(gradient.abs().max()))


def test_casts_of_a_plan_and_of_what_crosses_are_done() -> None:
    expected, gradient = losses(net(), PLAIN, torch.float32)
    for more in ("transfer bf16", "transfer fp16"):
        actual, other = losses(net(), plan("1f1b", more=more), torch.float32)
        assert actual == pytest.approx(expected, rel=2e-2) and actual != pytest.approx(expected, rel=1e-7)
        torch.testing.assert_close(other, gradient, rtol=0.05, atol=0.05 * float(gradient.abs().max()))
    casts = "precision { compute bf16  reduce fp32 }\n"
    expected, gradient = losses(net(), f"{PLAIN}\n{casts}", torch.float32)
    actual, other = losses(net(), plan("zb-h1") + casts, torch.float32)
    assert actual == pytest.approx(expected, rel=2e-2)
    torch.testing.assert_close(other, gradient, rtol=0.05, atol=0.05 * float(gradient.abs().max()))
