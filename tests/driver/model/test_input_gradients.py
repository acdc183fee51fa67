"""Gradients of inputs, as a model needs them that is a part of another one."""

from __future__ import annotations

import copy

import pytest
import stretto
import torch
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import CompileRequest, Options
from stretto.dsl.plan import Plan
from stretto.frontend.to_ir import Floats
from stretto.runtime.checks.program_check import check
from torch import Tensor, nn

PLANS = {
    "dp": "mesh (dp=2)",
    "dp_tp": 'mesh (dp=2, tp=2)\nshard "up" columns over tp\nshard "down" rows over tp\n',
}


class Middle(nn.Module):
    """The part of a model between others."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x))) * gate


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("plan", PLANS)
def test_a_compiled_part_passes_gradients_on(plan: str, frozen: bool) -> None:
    torch.manual_seed(0)
    plain = Middle().double().requires_grad_(not frozen)
    compiled = stretto.compile(copy.deepcopy(plain), plan=PLANS[plan])
    before = nn.Linear(8, 8).double()
    x, gate = torch.randn(4, 8).double(), torch.randn(4, 8).double()
    gradients = []
    for module in (compiled, plain):
        before.zero_grad()
        module(before(x), gate).pow(3).sum().backward()
        own = [p.grad for p in module.parameters() if p.grad is not None]
        gradients.append([before.weight.grad.clone(), *own])  # type: ignore[union-attr]
        assert len(own) == (0 if frozen else 4)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(*gradients, strict=True))


class Signs(nn.Module):
    """A loss of which one input's gradient is zero, whatever the input."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return (self.down(self.up(x.sgn()).tanh()) * gate).square().mean()


def test_a_gradient_that_is_zero_for_every_microbatch_comes_out_of_a_pipeline() -> None:
    torch.manual_seed(0)
    plain = Signs().double()
    compiled = stretto.compile(copy.deepcopy(plain), plan="mesh (pp=2)\npipeline over pp { microbatches 2 }")
    gradients = []
    for module in (compiled, plain):
        torch.manual_seed(1)
        x, gate = (torch.randn(4, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
        (3 * module(x, gate)).backward()
        gradients.append([x.grad, gate.grad])
    assert torch.equal(gradients[0][0], torch.zeros(4, 8, dtype=torch.float64)) and gradients[1][1].any()
    assert torch.allclose(gradients[0][1], gradients[1][1], rtol=0, atol=1e-12)


def test_a_gradient_of_an_input_does_not_wait_in_no_sync() -> None:
    compiled = stretto.compile(Middle(), plan=PLANS["dp"])
    x = torch.randn(4, 8, requires_grad=True)
    with compiled.no_sync():
        compiled(x, torch.ones(4, 8)).sum().backward()
    assert x.grad is not None and compiled.up.weight.grad is None


def test_a_check_compares_gradients_of_inputs() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    options = Options(floats=Floats.FLOAT64)
    request = CompileRequest.of(Middle(), (x, torch.ones(4, 8)), {}, Plan.parse(PLANS["dp_tp"]), options)
    program = compile_program(request).program
    report = check(program)
    assert report.passed
    assert "x" in {row.name for row in report.rows if row.kind == "gradient"}
