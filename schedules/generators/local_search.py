"""Improve a schedule by moving single tasks past a few others on their rank; what shortens the step is kept.

Of two schedules that are equally long the better one has its backwards earlier, since others wait for them.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from random import Random

from ..costs import Costs
from ..error import ScheduleError
from ..figures import Measure, peaks
from ..schedule import Kind, Schedule, Task, ordered
from ..simulate import simulate

_SLACK = 1e-9
_FARTHEST = 6
"""A task moves past at most so many others at once."""


def improve(schedule: Schedule, costs: Costs, cap: float, tries: int, measure: Measure = Measure.SPAN) -> Schedule:
    """A schedule that is no worse by `measure` and keeps within `cap`, after `tries` moves (each one simulation).

    The moves are drawn from a generator with a fixed seed, so that the same call gives the same schedule. A schedule
    with overlapped pairs, or written by hand, is given back as it is.
    """
    if schedule.overlapped or schedule.spans:
        return schedule
    draw, best, badness = Random(0), schedule, _badness(schedule, costs, measure)
    for _ in range(tries):
        moved = _moved(best, draw)
        if moved is None or max(peaks(moved, costs.kept)) > cap + _SLACK:
            continue
        judged = _badness(moved, costs, measure)
        if judged <= badness:
            best, badness = moved, judged
    return best


def _badness(schedule: Schedule, costs: Costs, measure: Measure) -> tuple[float, float]:
    """The measured time, then the sum of all B's ends; infinite for a schedule that cannot run."""
    try:
        times = simulate(schedule, costs)
    except ScheduleError:
        return inf, inf
    pairs = zip(schedule.order, times.ends, strict=True)
    backwards = sum(end for tasks, ends in pairs for task, end in zip(tasks, ends, strict=True) if task.kind == Kind.B)
    length = times.makespan if measure == Measure.MAKESPAN else max(times.spans)
    return round(length, 9), round(backwards, 9)


def _moved(schedule: Schedule, draw: Random) -> Schedule | None:
    """The schedule with one task moved; None where that task cannot pass what is between."""
    rank = draw.randrange(schedule.ranks)
    tasks = schedule.order[rank]
    start = draw.randrange(len(tasks))
    to = max(0, min(len(tasks) - 1, start + draw.choice((-1, 1)) * draw.randint(1, _FARTHEST)))
    if not _passes(tasks, start, to):
        return None
    reordered = list(tasks)
    reordered.insert(to, reordered.pop(start))
    order = schedule.order
    return replace(schedule, order=ordered((*order[:rank], reordered, *order[rank + 1 :])))


def _passes(tasks: tuple[Task, ...], start: int, to: int) -> bool:
    """Whether a task can pass those between: not what it needs or needs it, nor its like of another microbatch."""
    if start == to:
        return False
    task = tasks[start]
    between = tasks[to:start] if to < start else tasks[start + 1 : to + 1]
    return not any(
        other.stage == task.stage
        and (other.microbatch == task.microbatch or (other.kind == task.kind and task.kind != Kind.W))
        for other in between
    )
