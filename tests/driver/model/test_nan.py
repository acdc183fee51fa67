"""`detect_anomaly`: the operation that made the first NaN, at the user's line."""

from __future__ import annotations

import linecache

import pytest
import stretto
import torch
from torch import Tensor, nn

from ..models import TP, batch, twins


class Logarithm(nn.Module):
    """Its forward, or only its backward, makes a NaN when `shift` says so."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)
        self.register_buffer("shift", torch.tensor(0.0))
        self.shift: Tensor

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.down(self.up(x)).square() + 1
        rooted = torch.sqrt(hidden * (self.shift == 2) * 0.0 + (self.shift != 2)) * hidden
        return torch.log(rooted - 1e9 * (self.shift == 1)).mean()


PLAN = """
mesh (dp=2, tp=2)
shard "up" columns over tp
shard "down" rows over tp
"""


def compiled(shift: float) -> Logarithm:
    model = Logarithm()
    model.shift.fill_(shift)
    return stretto.compile(model, plan=PLAN)


def line_of(error: stretto.StrettoError) -> str:
    """The source line that the error names."""
    assert error.span is not None
    return linecache.getline(error.span.file, error.span.line)


def test_a_nan_in_the_loss_is_traced_to_its_operation() -> None:
    model = compiled(1)
    x = torch.randn(4, 4)
    assert model(x).isnan()  # nobody asked
    with (
        pytest.raises(stretto.StrettoError, match="the first NaN was made by instruction") as caught,
        stretto.detect_anomaly(),
    ):
        model(x)
    assert caught.value.code == "E0336"
    assert "aten.log.default" in str(caught.value) and "torch.log(" in line_of(caught.value)


def test_a_nan_in_a_gradient_is_found_in_the_backward() -> None:
    model = compiled(2)
    loss = model(torch.randn(4, 4))
    with (
        pytest.raises(stretto.StrettoError, match=r"gradient '.*' has a NaN") as caught,
        stretto.detect_anomaly(),
    ):
        loss.backward()
    assert caught.value.code == "E0336" and "torch.sqrt(" in line_of(caught.value)


def test_a_nan_in_an_input_or_parameter_is_traced_to_it() -> None:
    model = compiled(0)
    with torch.no_grad():
        model.up.bias[3] = torch.nan
    with (
        pytest.raises(stretto.StrettoError, match=r"parameter 'up\.bias' already had one"),
        stretto.detect_anomaly(),
    ):
        model(torch.randn(4, 4))


def test_a_model_without_nans_runs_as_ever_when_they_are_looked_for() -> None:
    model, plain = twins(torch.float64)
    model = stretto.compile(model, plan=TP)
    with stretto.detect_anomaly():
        loss = model(*batch())
        loss.backward()
    assert loss.item() == pytest.approx(plain(*batch()).item(), rel=1e-12)


def test_a_nan_in_a_pipeline_stage_is_traced_to_its_operation() -> None:
    model = Logarithm()
    model.shift.fill_(1)
    model = stretto.compile(model, plan="mesh (pp=2)\npipeline over pp { schedule 1f1b  microbatches 2 }")
    with pytest.raises(stretto.StrettoError) as caught, stretto.detect_anomaly():
        model(torch.randn(4, 4))
    assert caught.value.code == "E0336"
    assert "aten.log.default" in str(caught.value) and "torch.log(" in line_of(caught.value)
