"""A trace has each instruction of each rank, and collectives from their start until they were waited for."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import stretto
from stretto.runtime.checks.steps import run_steps
from stretto.runtime.lanes.names import COMM, COMPUTE
from stretto.runtime.rank import step_trace
from stretto.runtime.rank.step_trace import recording

from ..tiny_programs import linear


def test_instructions_follow_each_other_and_a_collective_lasts_until_it_was_waited_for() -> None:
    program = linear(2)
    with recording() as trace:
        run_steps(program, steps=2)
    counts = Counter((task.stage, task.lane, task.name) for task in trace.tasks)
    for rank in range(2):
        assert counts[rank, COMPUTE, "mm.default"] == 4 and counts[rank, COMPUTE, "wait"] == 2
        assert counts[rank, COMM, "all_reduce over tp"] == 2
        tasks = sorted((task for task in trace.tasks if task.stage == rank), key=lambda task: task.start)
        compute = [task for task in tasks if task.lane == COMPUTE]
        assert all(one.end <= other.start for one, other in pairwise(compute))
        waits = [task for task in compute if task.name == "wait"]
        sums = [task for task in tasks if task.lane == COMM]
        assert all(one.start <= wait.start and one.end == wait.end for one, wait in zip(sums, waits, strict=True))
    assert {task.place for task in trace.tasks if task.name == "mm.default"} != {""}


def test_nothing_is_recorded_outside_of_the_block_or_when_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    program = linear(2)
    monkeypatch.setattr(step_trace, "MOST_TASKS", 5)
    with recording() as trace:
        run_steps(program, steps=1)
    count = len(trace.tasks)
    run_steps(program, steps=1)
    assert trace.is_full and len(trace.tasks) == count <= 5 + program.mesh.ranks


def test_the_file_has_a_process_for_each_rank_after_an_error_too(tmp_path: Path) -> None:
    file = tmp_path / "steps.json"
    with pytest.raises(ValueError, match="of the loop"), stretto.trace(file):
        run_steps(linear(2), steps=1)
        raise ValueError("of the loop")
    events = json.loads(file.read_text())["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {"rank 0", "rank 1"}
    assert all(event["dur"] >= 0 for event in events if event["ph"] == "X")


def test_each_process_writes_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with stretto.trace(tmp_path / "steps.json"):
        pass
    assert [each.name for each in tmp_path.iterdir()] == ["steps.rank3.json"]


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(stretto.StrettoError, match="E0508"), stretto.trace(tmp_path / "missing" / "steps.json"):
        pass
