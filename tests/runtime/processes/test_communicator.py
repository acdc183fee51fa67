"""Ranks that are processes: collectives, DTensor parameters, training, checks. One launch of four shows it all."""

from __future__ import annotations

from typing import Any

import pytest

from ...forked_ranks import values_of_ranks
from ..grid_program import grid
from ..named_entries.entries import both
from ..tiny_programs import linear
from . import rank_entries


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of four processes found."""
    folder = tmp_path_factory.mktemp("programs")
    grid().save(folder / "grid")
    grid(factor=3.0).save(folder / "other")
    grid("float64").save(folder / "double")
    grid("float64", factor=2.5).save(folder / "wrong")
    linear(2).save(folder / "small")
    both().save(folder / "entries")
    return values_of_ranks(rank_entries.everything, 4, folder)


def test_ranks_are_numbered_and_use_a_thread_each_on_few_cores(ranks: list[dict[str, Any]]) -> None:
    assert [report["rank"] for report in ranks] == [0, 1, 2, 3]
    assert all(report["threads"] >= 1 for report in ranks)


def test_every_collective_gives_what_rank_threads_give_to_the_bit(ranks: list[dict[str, Any]]) -> None:
    for report in ranks:
        assert len(report["differences"]) > 300
        assert {name: far for name, far in report["differences"].items() if far != 0} == {}


def test_a_future_goes_through_calls_in_processes_too(ranks: list[dict[str, Any]]) -> None:
    assert [report["rotated"] < 1e-12 for report in ranks] == [True] * 4
    assert [report["lanes"] < 1e-12 for report in ranks] == [True] * 4


def test_entries_of_a_folder_share_states_of_which_each_process_keeps_its_part(ranks: list[dict[str, Any]]) -> None:
    for report in ranks:
        assert report["entries"] == {"error": 0.0, "count": 2, "stays": True, "copied": 2 * 8}, "the count alone"


def test_different_programs_are_refused_on_all_ranks_naming_who_holds_which(ranks: list[dict[str, Any]]) -> None:
    for report in ranks:
        shared, other = report["refusals"]["hashes"].split()
        assert "error[E0353]" in report["refusals"]["hash"]
        assert f"ranks 0, 1, 3: hash {shared}" in report["refusals"]["hash"]
        assert f"rank 2: hash {other}" in report["refusals"]["hash"]


def test_a_mesh_of_another_size_is_refused_with_both_numbers(ranks: list[dict[str, Any]]) -> None:
    for report in ranks:
        assert "error[E0352]" in report["refusals"]["mesh"]
        assert "(tp=2) of 2 ranks, but there are 4 processes" in report["refusals"]["mesh"]


def test_distributing_keeps_names_order_ties_attributes_and_requires_grad(ranks: list[dict[str, Any]]) -> None:
    for report in ranks:
        before, after = report["module"]["names"]
        assert before == after == ["b", "tied", "frozen", "seen", "inner.w"]
        assert report["module"]["tied"]
        assert report["module"]["frozen"] == [False, True]


def test_an_uneven_dim_is_cut_as_dtensor_cuts_it(ranks: list[dict[str, Any]]) -> None:
    assert [report["module"]["local"] for report in ranks] == [[3, 3], [2, 3], [3, 3], [2, 3]]


def test_adamw_and_clipping_on_dtensors_equal_one_device(ranks: list[dict[str, Any]]) -> None:
    for report in ranks:
        assert report["module"]["loss"] < 1e-4
        assert report["module"]["norm"] < 1e-6
        assert report["module"]["parameters"] < 1e-6
        assert report["module"]["state"] == report["module"]["local"]


def test_a_cut_output_is_a_dtensor_and_a_buffer_is_whole(ranks: list[dict[str, Any]]) -> None:
    for report in ranks:
        assert report["module"]["y"] == ["DistributedTensor", [6, 3], [3, 3]]
        assert report["module"]["seen"] == 2.0


def test_a_parameter_placed_otherwise_is_refused(ranks: list[dict[str, Any]]) -> None:
    for report in ranks:
        assert "error[E0356]: parameter 'w' is placed as" in report["module"]["misplaced"]


def test_full_parameters_get_full_gradients_and_dtensor_inputs_are_moved(ranks: list[dict[str, Any]]) -> None:
    for report in ranks:
        assert max(report["plain"].values()) < 1e-5
        assert report["plain"]["again"] == 0


def test_processes_with_unequal_values_name_the_first_parameter_that_differs(
    ranks: list[dict[str, Any]],
) -> None:
    for report in ranks:
        assert "error[E0354]: parameter 'b' differs between processes: rank 3 has another" in report["seeds"]
        assert "set the same seed in all processes" in report["seeds"]


def test_two_axes_shard_a_dim_in_any_order_and_unevenly(ranks: list[dict[str, Any]]) -> None:
    parts = {
        "dp,tp 8": ([0, 1], [2, 3], [4, 5], [6, 7]),
        "dp,tp 6": ([0, 1], [2, 3], [4, 5], []),
        "tp,dp 8": ([0, 1], [4, 5], [2, 3], [6, 7]),
        "tp,dp 5": ([0, 1], [4], [2, 3], []),
    }
    for name, by_rank in parts.items():
        for report in ranks:
            own, whole = report["nested"][name]
            assert own == by_rank[report["rank"]]
            assert whole == [*range(int(name.split()[1]))]


def test_a_check_on_processes_compares_everything_with_one_device(ranks: list[dict[str, Any]]) -> None:
    for report in ranks:
        assert report["check"]["passed"]
        assert [(row["kind"], row["name"], row["verdict"]) for row in report["check"]["rows"]] == [
            ("output", "loss", "equal"),
            ("output", "y", "equal"),
            ("output", "loss (parameters halved)", "equal"),
            ("output", "y (parameters halved)", "equal"),
            ("gradient", "w", "equal"),
            ("gradient", "b", "equal"),
            ("gradient", "w (parameters halved)", "equal"),
            ("gradient", "b (parameters halved)", "equal"),
            ("parameter", "w", "equal"),
            ("parameter", "b", "equal"),
            ("buffer", "seen", "equal"),
        ]


def test_a_check_on_processes_finds_wrong_gradients(ranks: list[dict[str, Any]]) -> None:
    assert not any(report["wrong"]["passed"] for report in ranks)


def test_steps_report_losses_that_fall_and_how_long_they_took(ranks: list[dict[str, Any]]) -> None:
    losses = ranks[0]["steps"]["losses"]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == len(ranks[0]["steps"]["seconds"]) == 4
    assert all(report["steps"]["losses"] == losses for report in ranks)
    assert ranks[0]["steps"]["median_s"] > 0
