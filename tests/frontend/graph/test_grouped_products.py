"""Products of rows in groups are one op, whichever library's the model calls, and need no library where they run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import stretto
import torch
from stretto.driver.model.compiled_module import program_of
from stretto.runtime.program.program import Program
from torch import Tensor, nn

PLAN = 'mesh (a=2, b=2)\nshard "weight" dim 2 over a, b\n'


def of_transformers(rows: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    pytest.importorskip("transformers.integrations.moe", reason="it registers the op")
    return torch.ops.transformers.grouped_mm_fallback(rows, weight, offs)


def of_torch(rows: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    return torch._grouped_mm(rows, weight, offs=offs.int())


class Experts(nn.Module):
    """Rows sorted by expert, each times the matrix of its expert."""

    def __init__(self, product: Callable[[Tensor, Tensor, Tensor], Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.product = product
        self.weight = nn.Parameter(torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(0), dtype=dtype))

    def forward(self, x: Tensor, experts: Tensor) -> Tensor:
        order = experts.argsort(stable=True)
        ends = (experts[:, None] == torch.arange(3)).sum(0).cumsum(0)
        return self.product(x[order], self.weight, ends).tanh()


def ops_of(program: Program) -> set[str]:
    return {instruction.op for function in program.functions.values() for instruction in function.code}


CASES = [(of_transformers, torch.float64, 1e-9), (of_torch, torch.bfloat16, 2e-2)]


@pytest.mark.parametrize(("product", "dtype", "bound"), CASES)
def test_values_and_gradients_are_eager_s(
    product: Callable[[Tensor, Tensor, Tensor], Tensor], dtype: torch.dtype, bound: float
) -> None:
    eager, model = Experts(product, dtype), Experts(product, dtype)
    x, experts = torch.randn(7, 8, dtype=dtype), torch.tensor([2, 0, 2, 2, 0, 2, 0])
    compiled = stretto.compile(model, plan=PLAN)
    tangent = torch.randn(7, 16, dtype=dtype)
    wanted, got = eager(x, experts), compiled(x, experts)
    wanted.backward(tangent)
    got.backward(tangent)
    assert (got - wanted).abs().max() < bound * wanted.abs().max()
    assert (model.weight.grad - eager.weight.grad).abs().max() < bound * eager.weight.grad.abs().max()
    program = program_of(compiled)
    assert {"stretto.grouped_mm.default", "stretto.grouped_mm_backward.default"} <= ops_of(program)
    assert not any(op.startswith("transformers") or "aten._grouped" in op for op in ops_of(program))
