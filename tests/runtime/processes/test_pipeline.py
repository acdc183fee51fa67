"""Stages whose ranks are processes: messages, gradients, DTensors on the ranks of their stage. One launch of four."""

from __future__ import annotations

from typing import Any

import pytest

from ...forked_ranks import values_of_ranks
from ..pipe_program import Pipe
from . import pipe_entries


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of four processes found."""
    folder = tmp_path_factory.mktemp("programs")
    Pipe(dp=2).train().save(folder / "train")
    Pipe(dp=2).infer().save(folder / "infer")
    Pipe(dp=2, reduced=False).train().save(folder / "delayed")
    return values_of_ranks(pipe_entries.everything, 4, folder)


def test_messages_of_any_shape_and_dtype_come_in_order(ranks: list[dict[str, Any]]) -> None:
    assert [report["exchanged"] for report in ranks] == [[True] * 7] * 4


def test_plain_parameters_get_whole_gradients_and_buffers_in_every_process(ranks: list[dict[str, Any]]) -> None:
    for report in ranks:
        *far, seen = report["plain"]
        assert max(far) < 1e-12
        assert seen == 2.0


def test_gradients_that_wait_are_reduced_on_their_stage(ranks: list[dict[str, Any]]) -> None:
    assert max(max(report["delayed"][:2]) for report in ranks) < 1e-12


def test_outputs_are_in_every_process(ranks: list[dict[str, Any]]) -> None:
    assert max(report["infer"] for report in ranks) < 1e-12


def test_a_parameter_is_held_and_stepped_by_the_ranks_of_its_stage(ranks: list[dict[str, Any]]) -> None:
    for rank, report in enumerate(ranks):
        result = report["dtensors"]
        assert result["far"] < 1e-12
        assert result["here"] == result["grads"] == [rank >= 2, rank < 2]
        assert result["local"] == ([[4, 2], [0]] if rank >= 2 else [[0], [3, 4]])


def test_a_parameter_on_another_stage_is_sent_there_and_its_gradient_back(ranks: list[dict[str, Any]]) -> None:
    for rank, report in enumerate(ranks):
        for result in report["swapped"]:
            assert result["here"] == [rank < 2, rank >= 2]
            assert result["far"] < 1e-12


def test_a_parameter_that_is_not_on_its_stage_is_refused(ranks: list[dict[str, Any]]) -> None:
    for report in ranks[2:]:
        message = report["dtensors"]["misplaced"]
        assert "error[E0356]" in message
        assert "placed as R, R, but the program was compiled for R on ranks 2, 3" in message.replace("Replicate()", "R")


def test_the_check_of_a_pipeline_passes_in_processes(ranks: list[dict[str, Any]]) -> None:
    assert all(report["check"] for report in ranks)


def test_a_message_that_never_comes_ends_all_that_wait_and_names_the_instruction(ranks: list[dict[str, Any]]) -> None:
    two, three = ranks[2]["silent"], ranks[3]["silent"]
    assert "error[E0322]: rank 2 waited 1 s in the receive for rank 0" in two["said"]
    assert three["said"] == two["said"], "all ranks raise one diagnosis"
    assert "rank 3 stopped in another receive" in three["said"]
    assert max(two["took"], three["took"]) < 10
