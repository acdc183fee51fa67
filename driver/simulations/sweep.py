"""`stretto simulate --set`: a step for each choice of values of the cluster's items and of the plan's numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import product

from ...backends.simulator.simulation import Simulation
from ...diagnostics import StrettoError
from ...dsl.clusters.cluster import ITEMS, Cluster
from ...dsl.plan import Plan
from ...dsl.spelling import did_you_mean
from ...runtime.program.program import Program
from ..text.console import table
from .simulation import time_text

_NUMBER = re.compile(
    r"(?P<item>[A-Za-z_]\w*)(?P<between>\s*=\s*|\s+)(?P<value>[0-9]+(?:\.[0-9]+)?[A-Za-z%]{0,3})(?![\w.])"
)
"""A number of a plan, with the word before it: "microbatches 8", "dp=2"."""
_COMMENT = re.compile(r"#.*")


@dataclass(frozen=True)
class Change:
    """An item and the values that it takes, in order."""

    item: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """A choice of values, and the step with it."""

    values: tuple[str, ...]
    simulation: Simulation


def changes_of(texts: Sequence[str]) -> list[Change] | str:
    """The changes that texts such as "network=25GB/s,50GB/s" say; or the first text that says none."""
    found = []
    for text in texts:
        item, equals, values = text.partition("=")
        if not (item and equals and all(values.split(","))):
            return text
        found.append(Change(item, tuple(values.split(","))))
    return found


def sweep(
    changes: Sequence[Change],
    cluster: Cluster,
    plan: Plan | None,
    compiled: Callable[[Plan | None], Program],
    priced: Callable[[Program, Cluster], Simulation],
) -> Iterator[Point]:
    """The points of all choices, the last item's values next to each other. A program is compiled once for each plan.

    Raises StrettoError E0809 for an item that neither the cluster nor the plan has, and what the cluster and the plan
    raise for a value that they do not take.
    """
    programs: dict[str, Program] = {}
    for change in changes:
        if change.item not in ITEMS:
            _require_number(change.item, plan)
    for values in product(*(change.values for change in changes)):
        on, text = cluster, "" if plan is None else plan.text
        for change, value in zip(changes, values, strict=True):
            if change.item in ITEMS:
                on = on.changed(change.item, value)
            else:
                text = _replaced(text, change.item, value)
        if text not in programs:
            programs[text] = compiled(None if plan is None else Plan.parse(text, plan.file))
        yield Point(values, priced(programs[text], on))


def _require_number(item: str, plan: Plan | None) -> None:
    names = [] if plan is None else [found["item"] for found in _NUMBER.finditer(_COMMENT.sub("", plan.text))]
    if names.count(item) == 1:
        return
    if item in names:
        message, help = f'the plan has {names.count(item)} numbers behind "{item}"', "write a plan for each value"
    else:
        message = f'"{item}" is no item of the cluster' + (", nor a number of the plan" if plan else "")
        help = did_you_mean(item, (*ITEMS, *names)) if plan else "numbers of a plan need a target and --plan FILE"
    known = [*ITEMS, *(name for name in dict.fromkeys(names) if names.count(name) == 1)]
    raise StrettoError("E0809", message, expected=f"one of {', '.join(known)}", help=help)


def _replaced(text: str, item: str, value: str) -> str:
    """The plan's text with another number behind an item; comments keep theirs."""

    def line(each: str) -> str:
        code, mark, comment = each.partition("#")
        changed = _NUMBER.sub(
            lambda found: f"{found['item']}{found['between']}{value if found['item'] == item else found['value']}", code
        )
        return changed + mark + comment

    return "\n".join(line(each) for each in text.split("\n"))


def show_sweep(changes: Sequence[Change], points: Sequence[Point]) -> None:
    """Print a row for each point."""
    items = [change.item for change in changes]
    rows = [
        (
            *point.values, time_text(point.simulation.seconds), f"{point.simulation.utilization:.1%}",
            time_text(sum(point.simulation.slowest.spent.waited.values())),
        )
        for point in points
    ]  # fmt: skip
    table((*items, "step", "HFU", "waits"), rows, right=("step", "HFU", "waits"))


def plot(changes: Sequence[Change], points: Sequence[Point]) -> str:
    """A bar for each point, as SVG text: its length is the step, its darker part what nothing hides."""
    row, left, width = 24, 12 + 7 * max(len(_name(changes, point)) for point in points), 520
    longest = max(point.simulation.seconds for point in points)
    height = 16 + row * len(points) + 26
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 90}" height="{height}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="12">',
        f'<rect width="{left + width + 90}" height="{height}" fill="#ffffff"/>',
    ]
    for index, point in enumerate(points):
        top, seconds = 10 + index * row, point.simulation.seconds
        waited = min(seconds, sum(point.simulation.slowest.spent.waited.values()))
        long, part = width * seconds / longest, width * waited / longest
        lines += [
            f'<text x="8" y="{top + 14}" fill="#333333">{escape(_name(changes, point))}</text>',
            f'<rect x="{left}" y="{top}" width="{long:.1f}" height="{row - 6}" fill="#9dbbe3"/>',
            f'<rect x="{left}" y="{top}" width="{part:.1f}" height="{row - 6}" fill="#c9569a"/>',
            f'<text x="{left + long + 6:.1f}" y="{top + 14}" fill="#333333">{time_text(seconds)}</text>',
        ]
    said = "a step; of it, in red, communication and stages that it waits for"
    return "\n".join([*lines, f'<text x="8" y="{height - 10}" fill="#666666">{said}</text>', "</svg>", ""])


def _name(changes: Sequence[Change], point: Point) -> str:
    return ", ".join(f"{change.item} {value}" for change, value in zip(changes, point.values, strict=True))
