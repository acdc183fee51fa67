"""Attention with complex rotary embeddings under plans, in float64, and complex buffers and inputs of a step."""

from __future__ import annotations

import copy

import pytest
import stretto
import torch
from stretto.frontend.captured import Mode
from stretto.runtime.checks.program_check import check
from torch import Tensor, nn

from ..subsets import only
from .checking import assert_report, compiled_model

PLANS = {
    "data": "mesh (dp=2)",
    "heads": 'mesh (tp=2)\nshard "*.query", "*.key" columns over tp\nshard "*.out" rows over tp',
    "data and heads": 'mesh (dp=2, tp=2)\nshard "*.query", "*.key" columns over tp\nshard "*.out" rows over tp',
    "pipeline": "mesh (pp=2)\npipeline over pp { schedule 1f1b  microbatches 2 }",
}
WIDTH, HEADS, TOKENS = 16, 2, 6


class Block(nn.Module):
    """Turns queries and keys as DeepSeek-V2 and Llama 4 do, then attends."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def turned(self, x: Tensor, turns: Tensor) -> Tensor:
        heads = x.view(*x.shape[:2], HEADS, -1).transpose(1, 2)
        z = torch.view_as_complex(heads.float().reshape(*heads.shape[:-1], -1, 2))
        return torch.view_as_real(z * turns).flatten(3).type_as(heads)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        q, k = (self.turned(layer(x), turns) for layer in (self.query, self.key))
        mixed = nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Model(nn.Module):
    """x (batch, tokens, width) -> the loss; the turns are a buffer, computed, or an argument."""

    turns: Tensor
    frequencies: Tensor

    def __init__(self, source: str = "buffer") -> None:
        super().__init__()
        self.source = source
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.register_buffer("frequencies", torch.rand(WIDTH // HEADS // 2))
        angles = torch.outer(torch.arange(float(TOKENS)), self.frequencies)
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles), persistent=False)

    def forward(self, x: Tensor, turns: Tensor | None = None) -> Tensor:
        if self.source == "computed":
            angles = torch.outer(torch.arange(x.shape[1], device=x.device).to(x.dtype), self.frequencies)
            turns = torch.polar(torch.ones_like(angles), angles)
        for layer in self.layers:
            x = layer(x, self.turns if turns is None else turns)
        return (x * torch.arange(1.0, WIDTH + 1)).square().mean()


@pytest.mark.parametrize(
    ("plan", "source"),
    only([("data and heads", "buffer"), ("heads", "computed"), ("pipeline", "computed")],
         [(plan, source) for plan in PLANS for source in ("buffer", "computed")]),
)  # fmt: skip
def test_a_program_equals_its_reference(plan: str, source: str) -> None:
    torch.manual_seed(0)
    inputs = {"x": torch.randn(4, TOKENS, WIDTH)}
    assert_report(check(compiled_model(Model(source), inputs, PLANS[plan]).program))


def test_inference_equals_its_reference() -> None:
    torch.manual_seed(0)
    inputs = {"x": torch.randn(4, TOKENS, WIDTH)}
    assert_report(check(compiled_model(Model(), inputs, PLANS["heads"], Mode.INFER).program))


@pytest.mark.parametrize("source", only(["buffer"], ["buffer", "argument"]))
def test_a_step_has_eager_modes_gradients(source: str) -> None:
    torch.manual_seed(0)
    eager = Model()
    model, x = stretto.compile(copy.deepcopy(eager), plan=PLANS["data and heads"]), torch.randn(4, TOKENS, WIDTH)
    given = (x, eager.turns * 1j) if source == "argument" else (x,)
    for each in (eager, model):
        (2.5 * each(*given)).backward()
    for expected, actual in zip(eager.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-4, atol=1e-5)
