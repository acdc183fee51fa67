"""What the systems of rows were published to do: the points of `headline.toml`.

A row's folder may have this file: a cluster, the source, and points. A point has a published figure and a run: a plan,
and a target with the sizes of the publication, which is a function of `headline.py` beside it or a configuration of
Hugging Face. A gain has a second run, which it is the gain over.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from ...diagnostics import StrettoError
from ...dsl.clusters.cluster import Cluster
from ...dsl.spelling import listed
from .rows import Row

HEADLINE = "headline.toml"
MICROBATCHES = "$microbatches"
"""Stands in a plan for their number, where several are simulated."""
Types = type | tuple[type, ...]
_RUN: Mapping[str, Types] = {
    "target": str,
    "plan": str,
    "batch": int,
    "seq": int,
    "fuses": bool,
    "fp8": bool,
    "rounds": list,
}
_POINT = {
    "name": str,
    "figure": str,
    "published": (int, float),
    "over": dict,
    "tera": (int, float),
    "cause": str,
    **_RUN,
}


class Figure(StrEnum):
    """What a point was published as."""

    GAIN = "gain"
    """By what share more tokens a second than another run has."""
    SECONDS = "seconds"
    """Of a step."""
    TFLOPS = "tflops"
    """The publication's own count of operations of a step (`tera`, 10^12 on each GPU), a second."""


@dataclass(frozen=True)
class Run:
    """A target under a plan."""

    target: str
    plan: str
    batch: int = 1
    """Of a configuration of Hugging Face, as `seq`."""
    seq: int = 1
    fuses: bool = True
    """Whether what only moves bytes is fused, or each operation is a kernel."""
    fp8: bool = False
    """Whether products are priced in fp8."""
    rounds: tuple[int, ...] = ()
    """Two numbers of microbatches that are simulated, and the published one: each more takes as long as before."""


@dataclass(frozen=True)
class Point:
    """A published figure of a run."""

    name: str
    figure: Figure
    published: float
    run: Run
    over: Run | None = None
    """What a gain is over."""
    tera: float | None = None
    cause: str = ""
    """Why the simulator misses the figure, where it does and that is known."""


@dataclass(frozen=True)
class Headline:
    """The published figures of a row."""

    source: str
    cluster: Cluster
    points: tuple[Point, ...]


def read_headline(row: Row) -> Headline | None:
    """The published figures of a row; None where it has no file of them. Errors: E0513, and those of clusters."""
    path = row.folder / HEADLINE
    if not path.is_file():
        return None
    try:
        text = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StrettoError("E0513", f'cannot read "{path}": {error}') from None
    wrong = _wrong_keys(text, {"source": str, "cluster": str, "points": list}, ("source", "cluster", "points"))
    points = [] if wrong else text["points"]
    if wrong or not points:
        raise StrettoError("E0513", f'"{path}": {wrong or "there are no points"}', expected="[[points]] with a figure")
    cluster = Cluster.parse(text["cluster"], str(path))
    return Headline(text["source"], cluster, tuple(_point(each, path) for each in points))


def _point(item: object, path: Path) -> Point:
    wrong = _wrong_keys(item, _POINT, ("name", "figure", "published", "target", "plan"))
    values: Mapping[str, Any] = item if isinstance(item, dict) else {}
    wrong = wrong or _wrong_figure(values) or _wrong_keys(values.get("over", {}), _RUN, ())
    if wrong:
        raise StrettoError("E0513", f'"{path}", point "{values.get("name", "")}": {wrong}')
    own = {key: values[key] for key in _RUN if key in values}
    over = _run({**own, **values["over"]}) if "over" in values else None
    figure, cause = Figure(values["figure"]), values.get("cause", "")
    return Point(
        values["name"], figure, float(values["published"]), _run(own), over, values.get("tera"), cause
    )  # fmt: skip


def _run(values: Mapping[str, Any]) -> Run:
    return Run(**{**values, "rounds": tuple(values.get("rounds", ()))})


def _wrong_figure(values: Mapping[str, Any]) -> str:
    figures = [str(each) for each in Figure]
    if values["figure"] not in figures:
        return f'the figure is "{values["figure"]}", not one of {listed(figures, "and")}'
    if values["figure"] == Figure.GAIN and "over" not in values:
        return "a gain says what it is over: over = { plan = ... }"
    if values["figure"] == Figure.TFLOPS and "tera" not in values:
        return 'a figure in tflops says its count of operations as "tera"'
    rounds = values.get("rounds", [])
    if rounds and (len(rounds) != 3 or not all(isinstance(each, int) for each in rounds) or not _rise(rounds)):
        return '"rounds" has two numbers of microbatches that are simulated and the published one, rising'
    if rounds and MICROBATCHES not in values["plan"]:
        return f'with "rounds" the plan says {MICROBATCHES}'
    return ""


def _rise(numbers: list[int]) -> bool:
    return 0 < numbers[0] < numbers[1] <= numbers[2]


def _wrong_keys(item: object, known: Mapping[str, Types], needed: tuple[str, ...]) -> str:
    """What is wrong with the items of a table; empty: nothing."""
    if not isinstance(item, dict):
        return "a table is missing"
    for key, value in item.items():
        if key not in known:
            return f'there is no item "{key}"; known are {listed(list(known))}'
        if not isinstance(value, known[key]) or (isinstance(value, bool) and known[key] is not bool):
            return f'"{key}" is {value!r}'
    missing = [key for key in needed if key not in item]
    return f'"{missing[0]}" is missing' if missing else ""
