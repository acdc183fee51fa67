"""What a plan pays for though few want it is said with its bytes, and plans that pay for nothing are left in peace."""

from __future__ import annotations

import pytest
import torch
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import CompileRequest
from stretto.driver.report.advice import advice
from stretto.driver.report.explain import explain
from stretto.dsl import Plan
from torch import Tensor, nn
from torch.nn import functional as F

from ...subsets import some

HEADS, SIZE = 4, 8
WIDTH = HEADS * SIZE


class Attention(nn.Module):
    """Attention with fewer heads of keys and values than of queries."""

    def __init__(self, kv_heads: int) -> None:
        super().__init__()
        self.kv_heads = kv_heads
        self.q_proj, self.o_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k_proj, self.v_proj = (nn.Linear(WIDTH, kv_heads * SIZE) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        batch, tokens, _ = x.shape
        q = self.q_proj(x).view(batch, tokens, HEADS, SIZE).transpose(1, 2)
        k, v = (f(x).view(batch, tokens, self.kv_heads, SIZE).transpose(1, 2) for f in (self.k_proj, self.v_proj))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return out


class Net(nn.Module):
    """Two layers and a loss; `mixes` sorts rows of the batch."""

    def __init__(self, kv_heads: int = 4, *, mixes: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention(kv_heads) for _ in range(2))
        self.mixes = mixes

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to a number."""
        for layer in self.layers:
            x = x + layer(x)
        if self.mixes:
            x = x * x.sort(0).values
        return x.square().mean()


MEGATRON = 'shard "*.{q,k,v}_proj" columns over tp\nshard "*.o_proj" rows over tp\n'


def said(model: nn.Module, text: str) -> list[str]:
    call = {"x": torch.randn(4, 16, WIDTH)}
    return advice(explain(compile_program(CompileRequest.of(model, (), call, Plan.parse(text))).program))


@pytest.mark.parametrize(
    "text", some(f"mesh (dp=2, tp=2)\n{MEGATRON}", "mesh (dp=2)", "mesh (pp=2)\npipeline over pp { microbatches 2 }")
)
def test_plans_that_fit_are_left_in_peace(text: str) -> None:
    assert said(Net(), text) == []


def test_a_data_axis_that_moves_activations_is_said_with_bytes_and_place() -> None:
    [text] = said(Net(mixes=True), "mesh (dp=2)")
    assert text.startswith('axis "dp" shards the batch, but moves activations: a rank sends ')
    assert "KiB of them in a forward, most in the model itself (" in text and "test_advice.py:" in text


def test_more_ranks_than_heads_of_keys_are_said_with_bytes() -> None:
    [text] = said(Net(kv_heads=1), f"mesh (tp=2)\n{MEGATRON}")
    assert text.startswith('axis "tp" gathers what projections have computed in parts: a rank sends ')
    assert 'in "layers.*"' in text and "heads, of keys and values too" in text


def test_more_stages_than_layers_are_said_with_bytes() -> None:
    [text] = said(Net(), "mesh (pp=4)\npipeline over pp { microbatches 2 }")
    assert text.startswith("the pipeline has 4 stages for 2 repeated layers") and "KiB in a step" in text
