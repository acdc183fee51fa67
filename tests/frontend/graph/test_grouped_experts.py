"""Loops over a list of experts that mask results become products of the rows that chose each expert."""

from __future__ import annotations

import pytest
import torch
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import Mode
from stretto.ops.grouped_mm import GROUPED_MM
from torch import nn

from ...subsets import some
from .expert_lists import (
    WIDTH,
    Expert,
    Listed,
    Sum,
    best,
    by_score,
    centred,
    compared,
    one_hot,
    scattered,
    shuffled,
    unmasked,
)


def products(model: nn.Module) -> int:
    """How many products in groups the forward and the backward have."""
    graph = capture(model, (), {"x": torch.randn(4, 3, WIDTH)}, mode=Mode.TRAIN).graph.graph
    return len(graph.find_nodes(op="call_function", target=GROUPED_MM))


@pytest.mark.parametrize("flat", some(True, False))
@pytest.mark.parametrize("sum_of", some(scattered, compared, one_hot, best))
def test_each_expert_computes_the_rows_that_chose_it(sum_of: Sum, flat: bool) -> None:
    assert products(Listed(sum_of, flat=flat)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("sum_of", [scattered, compared, one_hot, best])
def test_values_and_gradients_are_those_of_the_loop(sum_of: Sum) -> None:
    model = Listed(sum_of, layers=2).double()
    x = torch.randn(4, 3, WIDTH, dtype=torch.float64, requires_grad=True)
    captured = capture(model, (), {"x": x}, mode=Mode.TRAIN)
    values = {each.name: each for each in captured.inputs}
    arguments = [
        torch.tensor(1.5, dtype=torch.float64) if name not in (*dict(model.named_parameters()), "x") else None
        for name in values
    ]
    named = {**dict(model.named_parameters()), "x": x}
    with torch.no_grad():
        results = captured.graph(*(named.get(n, a) for n, a in zip(values, arguments, strict=True)))
    (model(x) * 1.5).backward()
    for output, value in zip(captured.outputs, results, strict=True):
        if output.name in named and named[output.name].grad is not None:
            torch.testing.assert_close(value, named[output.name].grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sum_of", some(by_score, unmasked, shuffled, centred))
def test_what_may_be_another_sum_stays(sum_of: Sum) -> None:
    assert products(Listed(sum_of)) == 0


@pytest.mark.slow
def test_experts_that_are_not_alike_stay() -> None:
    model = Listed()
    model.layers[0].experts[2] = nn.Sequential(Expert(bias=True), nn.ReLU())
    assert products(model) == 0
