"""Parameters that are stored cut and computed whole: training is that of plain PyTorch, in threads and in processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import stretto
import torch
from torch import nn

from ...forked_ranks import values_of_ranks
from ...subsets import some
from ..models import TP, twins
from . import stored_entries
from .stored_entries import continued, losses_of

STORE = 'store "*" dim 0 over dp'
PLANS = {
    "dp": f"mesh (dp=2)\n{STORE}",
    "beside tp": f"{TP.replace('tp=2', 'tp=2, dp=2')}{STORE}",
    "over two axes": 'mesh (dp=2, cp=2)\nshard inputs dim 1 over cp\nstore "*" dim 0 over dp, cp',
    "of some": 'mesh (dp=2)\nstore "*.weight" dim 1 over dp\nstore "*norm*", "embed*" dim 0 over dp',
    "zero 1": "mesh (dp=2)\nzero 1 over dp",
    "zero 2": f"{TP.replace('tp=2', 'tp=2, dp=2')}zero 2 over dp",
    "zero 3": "mesh (dp=2)\nzero 3 over dp { keep forward }",
    "within": "mesh (node=2, gcd=2)\naxes dp = node, gcd\nzero 3 over dp { within gcd  from 50B }",
    "in stages": f"mesh (dp=2, pp=2)\n{STORE}\npipeline over pp {{ microbatches 2 }}",
}


@pytest.fixture(scope="module")
def expected() -> list[float]:
    """The losses of plain PyTorch."""
    return losses_of(twins(torch.float64)[1], range(3))


@pytest.mark.parametrize("plan", some("within", *(name for name in PLANS if name not in ("within", "in stages"))))
def test_threads_train_as_plain_pytorch_does_with_accumulation_and_clipping(plan: str, expected: list[float]) -> None:
    compiled = stretto.compile(twins(torch.float64)[0], plan=PLANS[plan])
    assert losses_of(compiled, range(3)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("plan", some("zero 1", "dp", "zero 3", "within"))
def test_processes_hold_their_share_train_alike_and_go_on_without_a_plan(
    plan: str, tmp_path: Path, expected: list[float]
) -> None:
    count = 4 if plan == "within" else 2
    ranks = values_of_ranks(stored_entries.trained, count, PLANS[plan], tmp_path)
    for rank in ranks:
        assert rank["losses"] == pytest.approx(expected, rel=1e-10)
        assert rank["held"] < 1.1 / count * rank["whole"]  # parameters and one state of the optimizer
        # Gradients are reduce-scattered, those that waited in `no_sync` too.
        assert plan == "within" or rank["all_reduced"] <= 1
    model, plain = twins(torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    assert stretto.load_checkpoint(tmp_path / "stored", model, optimizer) == {"step": 3}
    losses_of(plain, range(3))
    for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-9, atol=1e-11)


OTHERS = (
    TP, "mesh (cp=2)\nshard inputs dim 1 over cp", "mesh (pp=2)\npipeline over pp { microbatches 2 }",
    "mesh (dp=4)\nzero 2 over dp", None,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["zero 1", "zero 3", "within"])
def test_a_checkpoint_of_parts_goes_on_under_any_other_plan_and_under_none(plan: str, tmp_path: Path) -> None:
    values_of_ranks(stored_entries.trained, 4 if plan == "within" else 2, PLANS[plan], tmp_path)
    expected = losses_of(twins(torch.float64)[1], range(5))[3:]
    for other in OTHERS:
        model = twins(torch.float64)[0]
        compiled = model if other is None else stretto.compile(model, plan=other)
        assert continued(compiled, tmp_path, range(3, 5)) == pytest.approx(expected, rel=1e-9), other


@pytest.mark.slow
def test_a_model_on_the_meta_device_is_never_whole_on_a_rank_under_zero_3(tmp_path: Path) -> None:
    model = twins()[0]
    stretto.save_weights(model, tmp_path / "whole.safetensors")
    for rank in values_of_ranks(stored_entries.filled, 2, "mesh (dp=2)\nzero 3 over dp", tmp_path):
        assert rank["own"] < 0.55 * rank["whole"]
        assert 0 < rank["largest"] <= rank["largest whole"] // 2
        assert rank["sum"] == pytest.approx(sum(p.sum().item() for p in model.parameters()), rel=1e-4)


def test_a_parameter_is_not_stored_over_an_axis_that_it_is_computed_with() -> None:
    with pytest.raises(stretto.StrettoError, match=r'the axis "tp" shards "embed\.weight" already') as caught:
        stretto.compile(twins()[0], plan=f'{TP}store "*" dim 1 over tp')
    assert caught.value.code == "E0112" and "over an axis that no shard statement of it names" in caught.value.help


def test_a_dim_that_a_parameter_does_not_have_is_named() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.scale + self.shift).sum()

    with pytest.raises(stretto.StrettoError, match=r'"shift" .* has no dim 1') as caught:
        stretto.compile(Scaled(), plan='mesh (dp=2)\nstore "*" dim 1 over dp')
    assert caught.value.code == "E0115" and 'store "shift" dim 0 over dp' in caught.value.help
    numbers_stay_whole = stretto.compile(Scaled(), plan='mesh (dp=2)\nstore "*" dim 0 over dp')
    assert numbers_stay_whole(torch.ones(4, 2)).item() == 16.0
