"""`stretto zoo --simulate`: published figures of rows beside what the simulator says of the same runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import assert_never

from ...backends.simulator.kernels import Products
from ...backends.simulator.simulation import simulate
from ...diagnostics import StrettoError
from ...dsl.clusters.cluster import Cluster
from ...dsl.plan import Plan
from ...frontend.captured import Mode
from ...frontend.targets.fake_parameters import fake_parameters
from ...frontend.targets.load_target import load_target
from ...frontend.targets.target import Request
from ..compile.compile_program import compile_program
from ..compile.request import CompileRequest, Options
from ..text.console import count_text, note, say, table
from .headline_file import HEADLINE, MICROBATCHES, Figure, Headline, Point, Run, read_headline
from .rows import Row


@dataclass(frozen=True)
class Simulated:
    """A point and what the simulator says."""

    row: str
    point: Point
    found: float

    @property
    def meets(self) -> bool:
        """Whether a gain has the right sign, and is within a quarter or 2 points; else, whether it is within 10 %."""
        published = self.point.published
        if self.point.figure is Figure.GAIN:
            return self.found * published > 0 and abs(self.found - published) <= max(abs(published) / 4, 0.02)
        return abs(self.found / published - 1) <= 0.1

    def to_json(self) -> Mapping[str, object]:
        return {
            "row": self.row, "point": self.point.name, "figure": str(self.point.figure),
            "published": self.point.published, "simulated": self.found, "meets": self.meets, "cause": self.point.cause,
        }  # fmt: skip


def simulate_rows(rows: Sequence[Row]) -> list[Simulated]:
    """All points of the rows that have some. Errors: E0513 where none has."""
    found = [(row, headline) for row in rows if (headline := read_headline(row)) is not None]
    if not found:
        names = ", ".join(row.name for row in rows)
        raise StrettoError("E0513", f"no published run of {names} is described", expected=f"NAME/{HEADLINE}")
    return [point for row, headline in found for point in simulate_headline(row, headline)]


def simulate_headline(row: Row, headline: Headline) -> list[Simulated]:
    """Each point of a row: its runs are compiled and simulated, each once."""
    seconds = cache(lambda run: _seconds(row, run, headline.cluster))
    points = []
    for point in headline.points:
        note(f"{row.name}: {point.name}")
        points.append(Simulated(row.name, point, _figure(point, seconds)))
    return points


def show_headlines(points: Sequence[Simulated]) -> None:
    """Print a row for each point, and why points are missed."""
    lines = [
        (
            each.row, each.point.name, _text(each.point.figure, each.point.published),
            _text(each.point.figure, each.found), "yes" if each.meets else "no",
        )
        for each in points
    ]  # fmt: skip
    table(("row", "point", "published", "simulated", "meets"), lines, right=("published", "simulated"))
    say()
    for each in points:
        if each.point.cause and not each.meets:
            say(f"{each.row}, {each.point.name}: {each.point.cause}")
    met = sum(each.meets for each in points)
    say(f"{met} of {count_text(len(points), 'point')} met: a gain to a quarter or 2 points, a time or speed to 10 %")


def _text(figure: Figure, value: float) -> str:
    match figure:
        case Figure.GAIN:
            return f"{value:+.1%}"
        case Figure.SECONDS:
            return f"{value:.2f} s"
        case Figure.TFLOPS:
            return f"{value:.0f} TFLOP/s"
    assert_never(figure)


def _figure(point: Point, seconds: Callable[[Run], float]) -> float:
    own = seconds(point.run)
    match point.figure:
        case Figure.GAIN:
            assert point.over is not None, "read so"
            return seconds(point.over) / own - 1
        case Figure.SECONDS:
            return own
        case Figure.TFLOPS:
            assert point.tera is not None, "read so"
            return point.tera / own
    assert_never(point.figure)


def _seconds(row: Row, run: Run, cluster: Cluster) -> float:
    """A step of a run; where it has `rounds`, of the published number of microbatches by two smaller ones."""
    if not run.rounds:
        return _simulated(row, run, run.plan, cluster, 1.0)
    few, more, published = run.rounds
    one, other = (
        _simulated(row, run, run.plan.replace(MICROBATCHES, str(number)), cluster, number / published)
        for number in (few, more)
    )
    return one + (published - few) * (other - one) / (more - few)


def _simulated(row: Row, run: Run, plan: str, cluster: Cluster, share: float) -> float:
    """A step with a share of the target's batch; its weights are never allocated."""
    form, _, path = run.target.rpartition("hf:")
    place = f"hf:{row.folder / path}" if run.target.startswith("hf:") else f"{form}{row.folder / path}"
    with fake_parameters():
        target = load_target(place, Request(Mode.TRAIN, batch=run.batch, seq=run.seq))
    inputs = {name: value[: round(share * len(value))] for name, value in target.inputs.items()}
    options = Options(loss_only=True, keep_weights=False)
    request = CompileRequest.of(target.model, (), inputs, Plan.parse(plan), options)
    products = Products.FP8 if run.fp8 else Products.AS_STATED
    return simulate(compile_program(request).program, cluster, fuses=run.fuses, products=products).seconds
