"""Two timelines of steps side by side: where one is slower, by kind of work and by place in the model."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...diagnostics import StrettoError
from ...runtime.lanes.names import COMPUTE
from ...runtime.lanes.timeline import Task
from ..text.console import heading, place_text, say, table
from .simulation import time_text

_PRODUCTS = (
    "mm.",
    "bmm.",
    "addmm.",
    "baddbmm.",
    "convolution",
    "_grouped_mm",
    "dot.",
    "mv.",
    "addmv.",
    "matrix products",
)
_ATTENTION = ("_scaled_dot_product", "attention")
_WAIT = "wait"
_CALLS = "calls"
"""The lane on which a simulation draws calls of functions: its times are those of what is inside."""
_REST = "the rest: waits, and what is no instruction"
_SHOWN = 20
_LEAST = 0.005
"""The share of the longer step below which a place is not listed."""


@dataclass(frozen=True)
class Timeline:
    """The tasks of some ranks in some steps."""

    name: str
    tasks: tuple[Task, ...]
    steps: int

    @property
    def ranks(self) -> int:
        """How many ranks, or stages of one rank each, it has."""
        return len({task.stage for task in self.tasks})

    @property
    def seconds(self) -> float:
        """From the first task of any rank to the last, for each step."""
        return (max(task.end for task in self.tasks) - min(task.start for task in self.tasks)) / self.steps

    def parts(self) -> dict[str, float]:
        """Where a step goes on the average rank, in seconds: kinds of computing, and the rest."""
        found = self._times(_part)
        return {**found, _REST: self.seconds - sum(found.values())}

    def collectives(self) -> dict[str, float]:
        """By kind and axes: seconds of a rank in a step, from start to end; of a real run, to the wait."""
        return self._times(lambda task: "" if task.lane in (COMPUTE, _CALLS) else task.name)

    def places(self) -> dict[str, float]:
        """By module, else by source line: seconds that a rank computes in a step."""
        return self._times(_place)

    def _times(self, name_of: Callable[[Task], str]) -> dict[str, float]:
        found: dict[str, float] = defaultdict(float)
        for task in self.tasks:
            if name := name_of(task):
                found[name] += (task.end - task.start) / self.steps / self.ranks
        return dict(found)


@dataclass(frozen=True)
class Row:
    """What one part or place takes in the two timelines, in seconds."""

    name: str
    first: float
    second: float

    @property
    def more(self) -> float:
        """What the second takes more."""
        return self.second - self.first

    def to_json(self) -> dict[str, object]:
        return {"name": self.name, "seconds": [self.first, self.second]}


@dataclass(frozen=True)
class Comparison:
    """Two timelines, and their rows: what differs most first."""

    first: Timeline
    second: Timeline

    @property
    def parts(self) -> list[Row]:
        """Their sum is the step."""
        return _rows(self.first.parts(), self.second.parts())

    @property
    def collectives(self) -> list[Row]:
        """By kind and axes."""
        return _rows(self.first.collectives(), self.second.collectives())

    @property
    def places(self) -> list[Row]:
        """By module, else by source line."""
        return _rows(self.first.places(), self.second.places())

    def to_json(self) -> dict[str, object]:
        """Seconds, for one rank in one step."""
        return {
            "seconds": [self.first.seconds, self.second.seconds],
            "parts": [row.to_json() for row in self.parts],
            "collectives": [row.to_json() for row in self.collectives],
            "places": [row.to_json() for row in self.places],
        }


def _rows(one: Mapping[str, float], two: Mapping[str, float]) -> list[Row]:
    rows = [Row(name, one.get(name, 0.0), two.get(name, 0.0)) for name in dict.fromkeys((*one, *two))]
    return sorted(rows, key=lambda row: -abs(row.more))


def read_timeline(path: str | Path) -> Timeline:
    """A file of `stretto simulate --trace`, `stretto run --trace` or `stretto.trace`. Raises StrettoError E0514."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        events: Sequence[Mapping[str, Any]] = found["traceEvents"]
        lanes = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"}
        tasks = tuple(
            Task(
                e["pid"], lanes[e["pid"], e["tid"]], e["name"], e["args"]["place"],
                e["ts"] * 1e-6, (e["ts"] + e["dur"]) * 1e-6,
            )
            for e in events
            if e["ph"] == "X"
        )  # fmt: skip
        steps = int(found.get("steps", 1))
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unread(path, f"{type(error).__name__}: {error}") from None
    if not tasks or steps < 1:
        raise _unread(path, "it has no tasks")
    return Timeline(str(path), tasks, steps)


def _unread(path: str | Path, why: str) -> StrettoError:
    return StrettoError(
        "E0514",
        f"'{path}' is no timeline: {why}",
        expected="a file of `stretto run --trace`, `stretto.trace` or `stretto simulate --trace`",
    )


def show_comparison(found: Comparison) -> None:
    """Print a comparison."""
    for letter, each in (("A", found.first), ("B", found.second)):
        say(f"{letter}  {time_text(each.seconds)} a step  {each.name} (steps: {each.steps}, ranks: {each.ranks})")
    say(f"B takes {found.second.seconds / found.first.seconds:.2f} times as long as A")
    heading("where a step goes on the average rank")
    _table("part", found.parts, found)
    if found.collectives:
        heading("collectives, from start to end")
        _table("collective", found.collectives, None)
    heading("computing, by place in the model")
    longest = max(found.first.seconds, found.second.seconds)
    rows = [row for row in found.places if abs(row.more) >= _LEAST * longest][:_SHOWN]
    _table("place", rows, found)
    if left := len(found.places) - len(rows):
        say(f"  ({left} places that differ by less; --json lists all)")


def _table(name: str, rows: Sequence[Row], whole: Comparison | None) -> None:
    """The rows; of a comparison, with their shares of the difference of its steps."""
    difference = whole.second.seconds - whole.first.seconds if whole is not None else 0.0
    headers = (name, "A", "B", "B - A", *(["share"] if difference else []))
    lines = [
        (
            row.name, time_text(row.first), time_text(row.second), _signed(row.more),
            *([f"{row.more / difference:.0%}"] if difference else []),
        )
        for row in rows
    ]  # fmt: skip
    table(headers, lines, right=headers[1:])


def _signed(seconds: float) -> str:
    return f"{'-' if seconds < 0 else '+'}{time_text(abs(seconds))}"


def _part(task: Task) -> str:
    """The kind of a task that computes."""
    if task.lane != COMPUTE or task.name == _WAIT:
        return ""
    if task.name.startswith(_ATTENTION):
        return "attention"
    return "matrix products" if task.name.startswith(_PRODUCTS) else "all else that computes"


def _place(task: Task) -> str:
    """The module that a task belongs to, or its source line; nothing of what does not compute."""
    if task.lane != COMPUTE or task.name == _WAIT:
        return ""
    module, _, line = task.place.rpartition(" ")
    if module:
        return module
    file, _, number = line.rpartition(":")
    return place_text(file, int(number)) if file and number.isdigit() else line or "(no place)"
