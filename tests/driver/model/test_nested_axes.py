"""Axes that shard one dim nest as the plan says, in threads and in processes: training is that of plain PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest
import stretto
import torch

from ...forked_ranks import values_of_ranks
from ...subsets import only
from . import nested_entries
from .nested_entries import Perceptron, clip_by_torch, losses_of

SHARDS = 'shard "up" columns over {axes}\nshard "down" rows over {axes}'
PLANS = {
    "tp then dp": f'mesh (dp=2, tp=2)\nshard inputs "x" dim 1 over dp\n{SHARDS.format(axes="tp, dp")}',
    "dp then tp": f'mesh (dp=2, tp=2)\nshard inputs "x" dim 1 over dp\n{SHARDS.format(axes="dp, tp")}',
    "stored inside": f'mesh (dp=2, tp=2)\n{SHARDS.format(axes="tp")}\nstore "*" dim 0 over dp',
    "inputs, three axes": f"mesh (a=2, b=2, c=2)\nshard inputs batch over c, a\n{SHARDS.format(axes='b, a')}",
    "microbatches": f"mesh (pp=2, a=2, b=2)\nshard inputs batch over b\n{SHARDS.format(axes='b, a')}\n"
    "pipeline over pp { microbatches 2 }",
    "a name in eight axes": "mesh (a=1, b=2, c=1, d=1, e=2, f=1, g=1, h=1)\naxes dp = e, b\n"
    f"{SHARDS.format(axes='dp')}",
}


@pytest.fixture(scope="module")
def expected() -> list[float]:
    """The losses and norms of plain PyTorch."""
    return losses_of(Perceptron(), clip_by_torch)


@pytest.mark.parametrize("plan", only(["tp then dp", "stored inside", "microbatches", "a name in eight axes"], PLANS))
def test_threads_train_as_plain_pytorch_does(plan: str, expected: list[float]) -> None:
    compiled = stretto.compile(Perceptron(), plan=PLANS[plan])
    assert losses_of(compiled, clip_by_torch) == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_processes_hold_the_parts_that_the_plan_says_and_go_on_under_another(
    tmp_path: Path, expected: list[float]
) -> None:
    ranks = values_of_ranks(nested_entries.trained, 4, PLANS["tp then dp"], tmp_path)
    plain = Perceptron()
    assert losses_of(plain, clip_by_torch) == expected
    for rank, found in enumerate(ranks):
        assert found["losses"] == pytest.approx(expected, rel=1e-12)
        assert found["by torch"] == pytest.approx(expected, rel=1e-12)
        assert found["again"]
        bias = found["whole"]["up.bias"]
        torch.testing.assert_close(torch.tensor(bias).double(), plain.up.bias.detach(), rtol=1e-6, atol=1e-7)
        first = 3 * (rank % 2 * 2 + rank // 2)  # tp is the outer axis of the dim, and the inner one of the mesh
        assert found["parts"]["up.bias"] == bias[first : first + 3]
    model = Perceptron()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    stretto.load_checkpoint(tmp_path / "nested", model, optimizer)
    ahead = nested_entries._step(model, optimizer, clip_by_torch, 3)
    for found in values_of_ranks(nested_entries.resumed, 4, PLANS["dp then tp"], tmp_path):
        assert found == pytest.approx(ahead, rel=1e-12)
