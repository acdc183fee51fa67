"""Improve a schedule by local search: move single tasks past others of their rank, and keep what is not worse.

Of two schedules of equal length, the one with earlier backwards is better, as other tasks wait for them.
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

_TOLERANCE = 1e-9
_FARTHEST = 6
"""The most tasks that one move passes."""


def improve(schedule: Schedule, costs: Costs, cap: float, tries: int, measure: Measure = Measure.SPAN) -> Schedule:
    """A schedule within `cap` that is no worse by `measure`, after `tries` moves (one simulation each).

    The moves are random with a fixed seed, so that the same call gives the same schedule. A schedule with overlapped
    pairs, or with source spans, is returned unchanged.
    """
    if schedule.overlapped or schedule.spans:
        return schedule
    random, best, badness = Random(0), schedule, _badness(schedule, costs, measure)
    for _ in range(tries):
        moved = _moved(best, random)
        if moved is None or max(peaks(moved, costs.kept)) > cap + _TOLERANCE:
            continue
        moved_badness = _badness(moved, costs, measure)
        if moved_badness <= badness:
            best, badness = moved, moved_badness
    return best


def _badness(schedule: Schedule, costs: Costs, measure: Measure) -> tuple[float, float]:
    """(measured time, sum of the ends of all B); infinite for a schedule that cannot run."""
    try:
        times = simulate(schedule, costs)
    except ScheduleError:
        return inf, inf
    pairs = zip(schedule.order, times.ends, strict=True)
    backwards = sum(end for tasks, ends in pairs for task, end in zip(tasks, ends, strict=True) if task.kind == Kind.B)
    length = times.makespan if measure == Measure.MAKESPAN else max(times.spans)
    return round(length, 9), round(backwards, 9)


def _moved(schedule: Schedule, random: Random) -> Schedule | None:
    """The schedule with one task moved; None if the task cannot pass the tasks in between."""
    rank = random.randrange(schedule.ranks)
    tasks = schedule.order[rank]
    start = random.randrange(len(tasks))
    to = max(0, min(len(tasks) - 1, start + random.choice((-1, 1)) * random.randint(1, _FARTHEST)))
    if not _passes(tasks, start, to):
        return None
    reordered = list(tasks)
    reordered.insert(to, reordered.pop(start))
    order = schedule.order
    return replace(schedule, order=ordered((*order[:rank], reordered, *order[rank + 1 :])))


def _passes(tasks: tuple[Task, ...], start: int, to: int) -> bool:
    """Whether a move keeps dependencies, and the order of microbatches of each kind and stage."""
    if start == to:
        return False
    task = tasks[start]
    between = tasks[to:start] if to < start else tasks[start + 1 : to + 1]
    return not any(
        other.stage == task.stage
        and (other.microbatch == task.microbatch or (other.kind == task.kind and task.kind != Kind.W))
        for other in between
    )
