"""`stretto schedule NAME`: generate and prove a schedule, measure it, and print it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ...schedules import CATALOGUE, Figures, Kind, Request, Schedule, Timeline, generate, prove, simulate
from ...schedules.generators.vocabulary import share_vocabulary
from .console import count_text, say, table
from .schedule_text import picture
from .text_files import read_text


@dataclass(frozen=True)
class MeasuredSchedule:
    """A proved schedule, the times of its tasks, and its figures."""

    schedule: Schedule
    request: Request
    timeline: Timeline
    figures: Figures

    def to_json(self) -> Mapping[str, object]:
        """One JSON object; times have the unit of the request's times."""
        schedule, figures, costs = self.schedule, self.figures, self.request.costs
        return {
            "name": schedule.name, "stages": schedule.ranks, "microbatches": schedule.microbatches,
            "chunks": schedule.chunks, "placement": list(schedule.placement),
            "times": {
                "f": costs.f, "b": costs.b, "w": costs.w, "c": costs.c, "fb": costs.fb,
                **({"s": costs.s, "t": costs.t, "e": costs.e, "g": costs.g} if schedule.barriers else {}),
            },
            "barriers": schedule.barriers,
            "makespan": figures.makespan, "longest_span": figures.longest_span,
            "bubble_by_makespan": figures.bubble_by_makespan, "bubble_by_span": figures.bubble_by_span,
            "peak_activations": list(figures.peaks),
            "ranks": [self._rank(rank) for rank in range(schedule.ranks)],
        }  # fmt: skip

    def _rank(self, rank: int) -> list[dict[str, object]]:
        rows = (self.schedule.order[rank], self.timeline.starts[rank], self.timeline.ends[rank])
        return [
            {"kind": task.kind.name, "stage": task.stage, "microbatch": task.microbatch, "start": start, "end": end,
             "overlapped": task in self.schedule.overlapped}
            for task, start, end in zip(*rows, strict=True)
        ]  # fmt: skip


def measure_named(name: str, request: Request, barriers: int = 0) -> MeasuredSchedule:
    """A named schedule, proved; with `barriers`, the tasks of a vocabulary shared by all ranks are inserted.

    Raises ScheduleError as `generate` and `prove` do.
    """
    return _proved(generate(name, request), request, barriers)


def measure_file(path: str, request: Request, barriers: int = 0) -> MeasuredSchedule:
    """The schedule written in a file, proved. Raises PlanError for its text, ScheduleError as `prove` does."""
    from ...dsl.schedule import WrittenSchedule
    from ...schedules.written import elaborate

    text, name = read_text(path)
    return _proved(elaborate(WrittenSchedule.parse(text, name), request), request, barriers)


def _proved(schedule: Schedule, request: Request, barriers: int) -> MeasuredSchedule:
    costs = request.costs
    if barriers:
        kinds = {Kind.S, Kind.T} | ({Kind.E, Kind.G} if costs.e or costs.g else set())
        schedule = share_vocabulary(schedule, kinds, barriers, costs, request.cap)
    figures = prove(schedule, request.costs, request.cap)
    return MeasuredSchedule(schedule, request, simulate(schedule, request.costs), figures)


def is_file(name: str) -> bool:
    """Whether a name is a file's and not a schedule's."""
    return name not in CATALOGUE and (os.sep in name or "." in name or os.path.exists(name))


def show_list() -> None:
    """Print the catalogue of schedules, with bubble and memory."""
    rows = [(entry.name, entry.line, entry.idle, entry.memory) for entry in CATALOGUE.values()]
    table(("schedule", "what it does", "time without work", "peak activations"), rows)
    say()
    say("p stages, m microbatches, v chunks; f, b, w: times of a rank; shares are of the makespan unless marked span")


def list_json() -> Mapping[str, object]:
    """The catalogue of schedules as JSON."""
    return {
        "schedules": [
            {"name": entry.name, "line": entry.line, "idle": entry.idle, "memory": entry.memory, "source": entry.source}
            for entry in CATALOGUE.values()
        ]
    }


def show_schedule(measured: MeasuredSchedule) -> None:
    """Print the picture and the figures."""
    schedule, figures = measured.schedule, measured.figures
    chunks = f", {schedule.chunks} chunks each" if schedule.chunks > 1 else ""
    many = f"{schedule.microbatches} microbatch{'' if schedule.microbatches == 1 else 'es'}"
    shared = f", a vocabulary shared with {count_text(schedule.barriers, 'barrier')}" if schedule.barriers else ""
    say(f"{schedule.name}: {count_text(schedule.ranks, 'stage')}{chunks}, {many}{shared}")
    say()
    for line in picture(schedule, measured.timeline):
        say(line)
    say()
    say(f"makespan            {figures.makespan:g}")
    say(f"bubble by makespan  {figures.bubble_by_makespan:.2%}")
    say(f"bubble by span      {figures.bubble_by_span:.2%}  (longest span of a rank: {figures.longest_span:g})")
    say(f"peak activations    {figures.peak:g}  (by rank: {', '.join(f'{peak:g}' for peak in figures.peaks)})")
    say("proved: no deadlock, every task runs once and after its inputs" + _cap_text(measured))


def _cap_text(measured: MeasuredSchedule) -> str:
    return "" if measured.request.cap is None else f", at most {measured.request.cap:g} activations on a rank"
