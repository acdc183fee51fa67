"""The figures of a schedule: makespan, bubble by makespan and by span, and peak activations per rank."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .costs import Costs
from .schedule import Kind, Schedule
from .simulate import Timeline, simulate

_NONE = (0.0,) * sum(kind.is_shared for kind in Kind)


class Measure(StrEnum):
    """The time by which schedules are compared."""

    MAKESPAN = "makespan"
    SPAN = "span"
    """The longest span of a rank; see `Figures`."""


@dataclass(frozen=True)
class Figures:
    """The figures of a schedule under given costs.

    Papers define the bubble in two ways. By makespan: the idle share of the time from the first task to the last task
    of all ranks. By span: the idle share of the longest time from a rank's own first task to its own last. By span,
    ranks start the next step at different times, which needs an optimizer that does not wait for all ranks.
    """

    makespan: float
    longest_span: float
    bubble_by_makespan: float
    bubble_by_span: float
    peaks: tuple[float, ...]
    """For each rank, in activations of one microbatch on all stages of a rank."""

    def by(self, measure: Measure) -> tuple[float, float]:
        """The makespan and the longest span, the given measure first."""
        pair = (round(self.makespan, 9), round(self.longest_span, 9))
        return pair if measure == Measure.MAKESPAN else (pair[1], pair[0])

    def bubble(self, measure: Measure) -> float:
        """The bubble by a measure."""
        return self.bubble_by_makespan if measure == Measure.MAKESPAN else self.bubble_by_span

    @property
    def peak(self) -> float:
        """The highest peak of all ranks."""
        return max(self.peaks)


def figures(schedule: Schedule, costs: Costs, timeline: Timeline | None = None) -> Figures:
    """Measure a schedule. `timeline` is its simulation with these costs, if it exists. Raises as `simulate` does."""
    times = timeline or simulate(schedule, costs)
    work = max(_work(schedule, costs, rank) for rank in range(schedule.ranks))
    makespan, span = times.makespan, max(times.spans)
    return Figures(makespan, span, 1 - work / makespan, 1 - work / span, peaks(schedule, costs.kept))


def _work(schedule: Schedule, costs: Costs, rank: int) -> float:
    durations, tasks = costs.durations(schedule.chunks), schedule.order[rank]
    work = sum(durations[task.kind] for task in tasks)
    if not schedule.overlapped:
        return work
    pairs = sum(task in schedule.overlapped for task in tasks)
    return work + pairs * (costs.pair(schedule.chunks) - durations[Kind.F] - durations[Kind.BW])


def peaks(schedule: Schedule, kept: float = 1.0) -> tuple[float, ...]:
    """The peak activations of each rank, in those of one microbatch on all stages of a rank.

    A forward's activations live from its start: those that W does not read (1 - `kept`) to the end of B, the others to
    the end of W. Without a backward they live to the end of the forward. Shared tasks (S, T, E, G) are not counted.
    """
    freed = freed_activations(schedule, kept)
    per_rank = []
    for tasks in schedule.order:
        activations = peak = 0.0
        for task in tasks:
            if task.kind == Kind.F:
                activations += 1.0
                peak = max(peak, activations)
            activations -= freed[task.kind]
        per_rank.append(round(peak / schedule.chunks, 9))
    return tuple(per_rank)


def freed_activations(schedule: Schedule, kept: float) -> tuple[float, ...]:
    """The activations that a task of each `Kind` frees, indexed by the kind."""
    return (0.0, 1.0 - kept, kept, 1.0, *_NONE) if schedule.has_backward else (1.0, 0.0, 0.0, 0.0, *_NONE)
