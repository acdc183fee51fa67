"""Which of several failed processes is named: the one that died, else the first that failed by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stretto.diagnostics import StrettoError
from stretto.runtime import CollectiveError, PeerFailed, RunError
from stretto.runtime.processes.launch import _first_failure
from stretto.runtime.processes.rank_process import _error_report
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

WAITED = CollectiveError(
    "E0322", "rank 0 waited 2 s in instruction 3 for rank 1",
    notes=(("rank 1 is alive, but waited in no collective", None),), help="see why rank 1 is late",
)  # fmt: skip
STOPPED = PeerFailed("E0323", "rank 1 failed: ValueError: of its own; rank 0 waited for it in instruction 3")
GONE = CollectiveError("E0350", "rank 1 is gone; rank 0 waited for it in instruction 3")


def first(folder: Path, exit_codes: dict[int, int], reports: dict[int, Exception]) -> RunError:
    """The error of processes that ended with these codes, of which some left a report."""
    for rank, error in reports.items():
        (folder / f"error-{rank}.json").write_text(json.dumps(_error_report(error)))
    failures = {rank: ProcessFailure(rank, 100 + rank, code, "") for rank, code in exit_codes.items()}
    return _first_failure(folder, failures, 3)


def test_an_error_of_stretto_keeps_its_code_its_notes_and_its_help(tmp_path: Path) -> None:
    error = first(tmp_path, {0: 1, 1: -15}, {0: WAITED})
    assert (error.code, error.message, error.help) == ("E0322", WAITED.message, WAITED.help)
    assert "rank 1 is alive, but waited in no collective" in error.render()


@pytest.mark.parametrize(
    ("codes", "reports", "code", "message"),
    [
        ({0: 1, 1: -9, 2: 1}, {0: GONE, 2: GONE}, "E0357", "rank 1 died: killed by SIGKILL"),
        ({0: 1, 1: 7}, {0: GONE}, "E0357", "rank 1 died: it exited with code 7"),
        ({0: 1, 1: 1}, {0: STOPPED, 1: ValueError("of its own")}, "E0357", "rank 1 failed: ValueError: of its own"),
        ({0: 1, 1: 1}, {0: STOPPED, 1: StrettoError("E0401", "no even batch")}, "E0401", "no even batch"),
        ({0: -15, 1: 1}, {1: WAITED}, "E0322", WAITED.message),
    ],
    ids=["killed", "exited", "an error of its own", "an error of Stretto", "ended by the launcher"],
)
def test_who_waited_for_a_process_that_failed_is_a_note(
    codes: dict[int, int], reports: dict[int, Exception], code: str, message: str, tmp_path: Path
) -> None:
    error = first(tmp_path, codes, reports)
    assert (error.code, error.message) == (code, message)
    others = {each.message for each in reports.values() if isinstance(each, StrettoError) and each.message != message}
    assert all(error.render().count(each) == 1 for each in others)
