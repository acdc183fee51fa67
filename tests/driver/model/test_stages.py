"""Parameters of pipeline stages in processes: clipping, checkpoints, weights. One launch of four processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import stretto
import torch

from ...forked_ranks import values_of_ranks
from ...runtime.pipe_program import Pipe
from . import stage_entries
from .stage_entries import Two, batch, trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all is kept, with a checkpoint of plain training."""
    checkpoints = tmp_path_factory.mktemp("stages")
    Pipe(dp=2).train().save(checkpoints / "train")
    stretto.save_checkpoint(checkpoints / "plain", *trained(2), step=2)
    return checkpoints


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """What each of four processes found."""
    return values_of_ranks(stage_entries.everything, 4, folder)


def test_a_checkpoint_of_one_device_goes_on_in_stages(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["extra"] == {"step": 2}
        assert rank["loaded"] == 0.0
        assert rank["went on"] < 1e-12


def test_parameters_and_the_state_of_an_optimizer_are_held_by_their_stage(ranks: list[dict[str, Any]]) -> None:
    assert [rank["here"] for rank in ranks] == [[True, False], [True, False], [False, True], [False, True]]
    assert [rank["held"] for rank in ranks] == [24, 24, 16, 16]


def test_the_norm_of_gradients_is_over_all_stages(ranks: list[dict[str, Any]]) -> None:
    assert max(max(rank["norms"]) for rank in ranks) < 1e-12


def test_torchs_own_clipping_of_stages_is_refused_with_the_function_to_call(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "E0359" in rank["torch's clipping"] and "stretto.clip_grad_norm_" in rank["torch's clipping"]


def test_a_checkpoint_of_stages_goes_on_in_stages_and_on_one_device(ranks: list[dict[str, Any]], folder: Path) -> None:
    assert max(rank["again"] for rank in ranks) < 1e-12
    model = Two()
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    assert stretto.load_checkpoint(folder / "staged", model, optimizer) == {"step": 3}
    model(batch()).backward()
    optimizer.step()
    for parameter, other in zip(model.parameters(), trained(4)[0].parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-12, atol=1e-12)


def test_weights_of_stages_are_global_in_their_file_and_in_a_state_dict(
    ranks: list[dict[str, Any]], folder: Path
) -> None:
    assert max(rank["weights"] for rank in ranks) < 1e-12
    assert [rank["state dict"] for rank in ranks] == [0.0] * 4
    model = Two()
    stretto.load_weights(model, folder / "weights.safetensors")
    for parameter, other in zip(model.parameters(), trained(3)[0].parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-12, atol=1e-12)
