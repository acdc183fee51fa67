"""Models and calls that ended in errors of torch's or Python's: they work, or a StrettoError says what to do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import stretto
import torch
from stretto.diagnostics import StrettoError
from stretto.ir.module import Module
from torch import Tensor, nn

DP = "mesh (dp=2)\nshard inputs batch over dp\n"


def test_a_batch_norm_that_averages_over_all_batches_can_be_the_whole_model() -> None:
    plain = nn.BatchNorm1d(10, 1e-3, None).double()
    model = stretto.compile(copy.deepcopy(plain), plan=DP)
    for seed in range(2):
        x = torch.randn(4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(model(x), plain(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(model.running_mean, plain.running_mean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lazy", [lambda: nn.LazyLinear(5), lambda: nn.LazyBatchNorm1d(affine=False)])
def test_a_lazy_module_is_refused_until_it_was_called_once(lazy: Callable[[], nn.Module]) -> None:
    plain = nn.Sequential(lazy(), nn.Linear(5, 2))
    x = torch.randn(4, 5)
    model = stretto.compile(plain, plan=DP)
    with pytest.raises(StrettoError, match="E0618") as caught:
        model(x)
    assert '"0.' in caught.value.message and "no_grad" in caught.value.help
    with torch.no_grad():
        plain(x)
    torch.testing.assert_close(model(x), plain(x))


class Table(nn.Module):
    """A loss of an embedding."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table = table

    def forward(self, ids: Tensor) -> Tensor:
        loss: Tensor = self.table(ids).pow(2).mean()
        return loss


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_gradients_are_refused_before_a_step(kind: Any) -> None:
    ids = torch.randint(10, (4, 3))
    with pytest.raises(StrettoError, match="E0230") as caught:
        stretto.compile(Table(kind(10, 4, sparse=True)), plan=DP)(ids)
    assert 'module "table"' in caught.value.message and "sparse=False" in caught.value.help
    assert caught.value.span is not None and "self.table(ids)" in caught.value.span.text


class Calls(nn.Module):
    """A forward that asks a function of its own for a shape."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * float(self.function(3).shape[0])


@pytest.mark.filterwarnings("ignore:.*draws random numbers in Python:UserWarning")
def test_a_bound_method_of_an_object_without_weak_references_may_be_an_attribute() -> None:
    model = stretto.compile(Calls(numpy.random.RandomState(0).rand), plan=DP)
    x = torch.ones(2, 4)
    torch.testing.assert_close(model(x), model.linear(x) * 3)
    first = stretto.program_of(model)
    model(x)
    assert stretto.program_of(model) is first
    model.function = numpy.random.RandomState(0).rand
    model(x)
    assert stretto.program_of(model) is not first


def test_clipping_asks_for_the_model() -> None:
    with pytest.raises(StrettoError, match="E0601") as caught:
        stretto.clip_grad_norm_(list(nn.Linear(2, 2).parameters()), 1.0)  # type: ignore[arg-type]
    assert "stretto.clip_grad_norm_(model" in caught.value.help


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.RMSNorm(6, eps=1e-5), nn.GroupNorm(2, 6)])
def test_dynamic_sizes_of_dynamo_leave_the_epsilon_of_a_norm_a_number(norm: nn.Module) -> None:
    torch._dynamo.reset()
    plain = nn.Sequential(nn.Linear(6, 6), norm, nn.Linear(6, 2)).double()
    model = torch.compile(copy.deepcopy(plain), backend="stretto", options={"plan": "mesh (dp=2)"}, dynamic=True)
    for batch in (4, 6, 3):
        x = torch.randn(batch, 6, dtype=torch.float64)
        torch.testing.assert_close(model(x), plain(x), rtol=1e-12, atol=1e-12)


def test_an_operation_of_another_dialect_is_refused_without_advice_of_mlirs() -> None:
    text = 'func.func @main(%a: tensor<4xf32>) {\n  "foo.bar"(%a) : (tensor<4xf32>) -> ()\n  return\n}\n'
    with pytest.raises(StrettoError, match="E0504") as caught:
        Module.parse(text)
    assert "dialect" in caught.value.message and "allow" not in caught.value.message
