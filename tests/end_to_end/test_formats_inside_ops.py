"""Where a pass takes an op of 16-bit tensors apart, what eager PyTorch keeps in float32 inside of it stays float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import CompileRequest
from stretto.dsl.plan import Plan
from stretto.runtime.program.program import Program
from torch import Tensor, nn
from torch.nn import functional as F

from ..subsets import some

SHORT = ("bfloat16", "float16")
STATISTICS = ("aten.exp.", "aten.log.", "aten.logsumexp.", "aten.amax.", "aten.rsqrt.", "aten.var_mean.")
"""Ops that none of these models has in bfloat16."""


class Smoothed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(12, 8), nn.Linear(8, 12, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self.embed(x)).flatten(0, 1), y.flatten(), label_smoothing=0.1)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).square().mean()


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each.unflatten(-1, (2, 4)).transpose(1, 2) for each in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2)).square().mean()


class Case(NamedTuple):
    model: Callable[[], nn.Module]
    inputs: tuple[Tensor, ...]
    plan: str


IDS = torch.arange(16).reshape(2, 8) % 12
CASES = {
    "loss over sharded classes": Case(Smoothed, (IDS, IDS), 'mesh (tp=2)\nshard "head" vocab over tp'),
    "batch norm over ranks": Case(Normed, (torch.randn(4, 3, 6, 6).bfloat16(),), "mesh (dp=2)"),
    "ring attention": Case(
        Attending, (torch.randn(2, 8, 8).bfloat16(),),
        "mesh (cp=2)\nshard inputs dim 1 over cp\nattention over cp { method ring }",
    ),
    "split loss": Case(Smoothed, (IDS, IDS), "mesh (dp=2)\nsplit loss into 2"),
}  # fmt: skip


def shortened(program: Program) -> Iterator[str]:
    """Ops of statistics in 16 bits."""
    for name, function in program.functions.items():
        for step in function.code:
            types = [program.type_of(name, slot) for slot in step.writes()]
            if step.op.startswith(STATISTICS) and any(type_ is not None and type_.dtype in SHORT for type_ in types):
                yield f"{step.op} in {name}"


@pytest.mark.parametrize("case", some(*CASES))
def test_statistics_are_float32(case: str) -> None:
    torch.manual_seed(0)
    make, inputs, plan = CASES[case]
    program = compile_program(CompileRequest.of(make().bfloat16(), inputs, {}, Plan.parse(plan))).program
    assert list(shortened(program)) == []
