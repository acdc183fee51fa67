"""Processes that are started, that fail, and that die in the middle of a step: what is said, and what is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stretto.runtime import RunError
from stretto.runtime.checks.steps import StepsReport
from stretto.runtime.processes import jobs as process_jobs
from stretto.runtime.processes.jobs import check_processes, run_processes_for
from stretto.runtime.processes.launch import run_processes
from stretto.runtime.processes.rank_process import find_entry
from stretto.runtime.program.arguments import Json

from ..grid_program import grid
from ..tiny_programs import linear

ENTRIES = Path(__file__).with_name("rank_entries.py")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left by others, who run at the same time, is not ours."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


def leftovers() -> tuple[set[str], str]:
    """Our files, and our processes."""
    files = {path.name for path in Path(tempfile.gettempdir()).glob("stretto-*")}
    children = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True, check=False
    ).stdout
    return files, "\n".join(line for line in children.splitlines() if "rank_process" in line)


@pytest.fixture
def without_hang_up() -> Iterator[None]:
    """SIGHUP is ignored, as under `nohup`: the launcher ignores it too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("without_hang_up")
def test_results_come_by_rank_also_when_the_terminal_closes_and_nothing_is_left(
    capfd: pytest.CaptureFixture[str],
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    before, environment = leftovers(), dict(os.environ)
    results: Any = run_processes(f"{ENTRIES}:alone", {"given": [1, None]}, 2)
    for rank, (arguments, rank_environment) in enumerate(results):
        assert arguments == {"given": [1, None]}
        assert (rank_environment["RANK"], rank_environment["WORLD_SIZE"]) == (str(rank), "2")
        assert rank_environment["MASTER_ADDR"] == "127.0.0.1"
        assert int(rank_environment["OMP_NUM_THREADS"]) >= 1
    assert leftovers() == before == (set(), "")
    assert dict(os.environ) == environment
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == handlers
    assert capfd.readouterr() == ("", "rank 0 was here\n")


@pytest.mark.slow
def test_an_error_of_the_entry_is_shown_with_its_traceback() -> None:
    with pytest.raises(RunError) as caught:
        run_processes(f"{ENTRIES}:failing", "of its own", 1)
    assert caught.value.code == "E0357"
    assert caught.value.message == "rank 0 failed: ValueError: of its own"
    assert "raise ValueError(arguments)" in caught.value.render()


@pytest.mark.parametrize("entry", ["json:no_such_function", "no.such.module:main", "/no/such/file.py:main", "loads"])
def test_a_function_that_cannot_be_imported_is_named(entry: str) -> None:
    with pytest.raises(RunError, match=entry) as caught:
        find_entry(entry)
    assert caught.value.code == "E0358"


@pytest.mark.slow  # in the default run: test_first_failure.py, and driver/model/test_no_rank_left_alone.py by forks
@pytest.mark.parametrize(
    ("end", "size", "code", "said"),
    [
        ("kill", 4, "E0357", "rank 1 died: killed by SIGKILL"),
        ("exit", 2, "E0357", "rank 1 died: it exited with code 7"),
        ("sleep", 2, "E0322", "rank 0 waited 2 s in instruction"),
    ],
)
def test_when_a_rank_ends_in_a_step_the_others_stop_and_name_it_and_their_instruction(
    end: str, size: int, code: str, said: str, tmp_path: Path
) -> None:
    (grid() if size == 4 else linear(2)).save(tmp_path / "program")
    before, started = leftovers(), time.monotonic()
    with pytest.raises(RunError) as caught:
        arguments: Json = {"folder": str(tmp_path / "program"), "timeout_s": 2.0, "end": end}
        run_processes(f"{ENTRIES}:training", arguments, size)
    assert time.monotonic() - started < 60
    assert leftovers() == before
    text = caught.value.render()
    assert caught.value.code == code
    assert said in text
    if end == "sleep":
        assert "for rank 1" in text
        assert "rank 1 is alive, but waited in no collective" in text
    else:
        assert re.search(r"rank 1 is gone|ranks 1, \d are gone", text), "a busy machine's rank may miss heartbeats"
        assert re.search(r"rank 0 waited for it in (instruction \d+ \(comm|gathering gradient)", text)


@pytest.mark.slow  # the command that does it is in the default run: tests/cli/test_run.py
def test_a_program_folder_is_checked_by_processes(tmp_path: Path) -> None:
    linear(1, "float64", width=5).save(tmp_path / "program")
    report = check_processes(tmp_path / "program", steps=2, seed=2)
    assert report.passed
    assert (report.steps, report.seed) == (2, 2)
    assert report.worst("gradient") is not None


def test_the_report_of_a_run_on_processes_is_rank_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linear(2).save(tmp_path / "program")
    reports = [StepsReport("train", (1.0, 0.5), (0.2, 0.1), tokens) for tokens in (10, None)]

    def launched(entry: str, arguments: object, processes: int) -> object:
        assert (entry, processes) == ("stretto.runtime.processes.jobs:steps_entry", 2)
        return [report.to_json() for report in reports]

    monkeypatch.setattr(process_jobs, "run_processes", launched)
    assert run_processes_for(tmp_path / "program", steps=2) == reports[0]
    assert reports[0].tokens_per_s == 100.0
