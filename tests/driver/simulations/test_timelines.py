"""Two timelines side by side: their parts sum to the steps, and name what differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stretto.diagnostics import StrettoError
from stretto.driver.simulations.timelines import Comparison, Timeline, read_timeline
from stretto.runtime.lanes.timeline import Task, trace_events


def tasks(product: float, steps: int = 1) -> list[Task]:
    """Of each of two ranks in each step of 10 s: a product, a sum beside a gather, and a wait."""
    found = []
    for rank in (0, 1):
        for step in range(steps):
            start = 10.0 * step
            found += [
                Task(rank, "compute", "mm.default", "layers.0.up model.py:3", start, start + product),
                Task(rank, "comm", "all_gather over dp", "layers.0.up model.py:3", start + 1, start + 8),
                Task(rank, "compute", "add.Tensor", "model.py:9", start + 5, start + 6),
                Task(rank, "compute", "wait", "model.py:9", start + 6, start + 10),
                Task(rank, "calls", "layer", "model.py:9", start, start + 10),
            ]
    return found


def test_parts_sum_to_the_step_of_the_average_rank() -> None:
    timeline = Timeline("a", tuple(tasks(2.0, steps=3)), 3)
    assert timeline.seconds == pytest.approx(10.0) and timeline.ranks == 2
    parts = timeline.parts()
    assert parts["matrix products"] == pytest.approx(2.0) and parts["all else that computes"] == pytest.approx(1.0)
    assert sum(parts.values()) == pytest.approx(timeline.seconds)
    assert timeline.collectives() == {"all_gather over dp": pytest.approx(7.0)}
    assert timeline.places() == {"layers.0.up": pytest.approx(2.0), "model.py:9": pytest.approx(1.0)}


def test_what_differs_most_is_first() -> None:
    found = Comparison(Timeline("a", tuple(tasks(2.0)), 1), Timeline("b", tuple(tasks(4.5, steps=2)), 2))
    assert (found.parts[0].name, found.parts[0].more) == ("matrix products", pytest.approx(2.5))
    assert found.places[0].name == "layers.0.up"
    assert sum(row.more for row in found.parts) == pytest.approx(found.second.seconds - found.first.seconds)


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "steps.json"
    file.write_text(json.dumps(trace_events(tasks(2.0, steps=2), steps=2)), encoding="utf-8")
    timeline = read_timeline(file)
    assert timeline.steps == 2 and timeline.parts() == pytest.approx(
        Timeline("", tuple(tasks(2.0, steps=2)), 2).parts()
    )


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"traceEvents": []}', '{"traceEvents": [{"ph": "X"}]}', '{"traceEvents": 3}', "\x00"]
)
def test_a_file_that_is_no_timeline_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "steps.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(StrettoError) as caught:
        read_timeline(file)
    assert caught.value.code == "E0514" and "stretto run --trace" in caught.value.expected
