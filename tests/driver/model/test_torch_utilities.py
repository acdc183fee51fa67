"""torch's own utilities where ranks are processes do what they do on one device, or refuse in words on all ranks."""

from __future__ import annotations

import pytest

from ...forked_ranks import run_ranks
from . import torch_utilities


def test_copies_of_models_parameters_and_averages_are_equal_and_separate() -> None:
    for rank in run_ranks(torch_utilities.copies, 2, timeout_s=20.0):
        assert rank.value and set(rank.value.values()) == {0.0}, rank


def test_hooks_run_where_their_parameter_is_and_change_its_gradient() -> None:
    for rank in run_ranks(torch_utilities.hooks, 2, timeout_s=20.0):
        assert rank.value == [2, [True, True]], rank


@pytest.mark.slow
def test_optimizers_train_uneven_shards_as_one_device_does_or_refuse_in_words() -> None:
    for rank in run_ranks(torch_utilities.optimizers, 2, timeout_s=20.0):
        assert rank.value == {"AdamW": "as plain", "Rprop": "E0363", "LBFGS": "E0363"}, rank


def test_torchs_clipping_is_refused_also_on_a_stage_without_gradients() -> None:
    assert [rank.value for rank in run_ranks(torch_utilities.clips, 2, timeout_s=20.0)] == ["E0359", "E0359"]


def test_elementwise_updates_of_equally_placed_tensors_are_made_on_own_parts() -> None:
    for rank in run_ranks(torch_utilities.updates, 2, timeout_s=20.0):
        assert rank.value == {"wrong": {}, "by DTensor": [], "counted": True, "tracked": True}, rank
