"""Under several processes one compiles and the others take its program; where it fails, all learn why."""

from __future__ import annotations

from pathlib import Path

import pytest

from ...forked_ranks import run_ranks, values_of_ranks
from ...subsets import some
from . import sharing_ranks


def test_one_process_compiles_for_all_and_the_next_run_for_none(tmp_path: Path) -> None:
    first, second = values_of_ranks(sharing_ranks.trains, 2, str(tmp_path))
    assert (first[0], second[0]) == (2, 0)
    assert first[1] == second[1]
    assert sharing_ranks.entries(tmp_path) == 2
    assert values_of_ranks(sharing_ranks.trains, 2, str(tmp_path)) == [(0, first[1])] * 2


@pytest.mark.slow
def test_a_compile_may_take_longer_than_a_collective_waits() -> None:
    first, second = run_ranks(sharing_ranks.trains, 2, "off", 4.0, timeout_s=2.0)
    assert first.value[0] == 2, first
    assert second.value == (0, first.value[1]), second


def test_named_sizes_are_found_by_one_process() -> None:
    first, second = values_of_ranks(sharing_ranks.sizes, 2)
    assert (first[0], second[0]) == (True, False)
    assert first[1:] == second[1:]


def test_an_error_of_the_compile_is_the_same_in_all_and_can_be_caught_by_all() -> None:
    first, second = values_of_ranks(sharing_ranks.fails, 2, "refuses")
    assert first == second == ("error[E0402]: no such batch\nhelp: pass another", True)


@pytest.mark.parametrize(
    ("how", "code", "words"), some(("a bug", "E0323", "rank 0 failed"), ("dies", "E0350", "rank 0"))
)
def test_a_process_that_fails_while_it_compiles_ends_all(how: str, code: str, words: str) -> None:
    _first, second = run_ranks(sharing_ranks.fails, 2, how, timeout_s=2.0)
    assert second.code == code, second
    assert words in second.message
    assert second.seconds < 60


def test_processes_with_other_forwards_take_no_program_of_each_other() -> None:
    ranks = run_ranks(sharing_ranks.differ, 2)
    assert [rank.code for rank in ranks] == ["E0353"] * 2
