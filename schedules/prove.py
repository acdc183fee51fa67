"""Whether a schedule can run: every task once and on its rank, nothing before what it needs, memory in bounds."""

from __future__ import annotations

from collections.abc import Iterator

from .costs import Costs
from .error import ScheduleCode, ScheduleError
from .figures import Figures, figures
from .schedule import Kind, Schedule, Task
from .simulate import simulate

_TOLERANCE = 1e-9


def prove(schedule: Schedule, costs: Costs | None = None, cap: float | None = None) -> Figures:
    """The figures of a schedule that can run; a counterexample as ScheduleError of one that cannot.

    `cap` is the most activations that a rank may hold, in those of one microbatch on all that a rank holds. Raises
    E0720 (deadlock), E0721 (something is used before it exists), E0722 (over the cap), E0723 (a task that is not
    there to run, or runs twice), E0724 (a task is missing).
    """
    costs = costs or Costs()
    _tasks_exist_once(schedule)
    found = figures(schedule, costs, simulate(schedule, costs))
    _all_there(schedule)
    if cap is not None:
        _within(schedule, found, cap, costs.kept)
    return found


def _tasks_exist_once(schedule: Schedule) -> None:
    """Raises E0723."""
    seen: dict[Task, tuple[int, int]] = {}
    placement, stages, microbatches = schedule.placement, schedule.stages, schedule.microbatches
    for rank, tasks in enumerate(schedule.order):
        for at, task in enumerate(tasks):
            if not (0 <= task.stage < stages and 0 <= task.microbatch < microbatches):
                raise _no_such(schedule, rank, at, f"there are {stages} stages and {microbatches} microbatches")
            if placement[task.stage] != rank:
                raise _no_such(schedule, rank, at, f"stage {task.stage} is on rank {placement[task.stage]}")
            for part in _parts(task):
                if part in seen:
                    raise _no_such(schedule, rank, at, f"its task {seen[part][1]} did {part} already")
                seen[part] = (rank, at)


def _parts(task: Task) -> Iterator[Task]:
    if task.kind == Kind.BW:
        yield task._replace(kind=Kind.B)
        yield task._replace(kind=Kind.W)
    else:
        yield task


def _no_such(schedule: Schedule, rank: int, at: int, why: str) -> ScheduleError:
    task = schedule.order[rank][at]
    return ScheduleError(
        ScheduleCode.NO_SUCH_TASK,
        f"rank {rank} cannot run {task} (its task {at}): {why}",
        span=schedule.span(rank, at),
        expected=f"expected stages 0..{schedule.stages - 1} and microbatches 0..{schedule.microbatches - 1}, each once",
    )


def _all_there(schedule: Schedule) -> None:
    """Raises E0724 where a stage lacks a task of some microbatch."""
    kinds = (Kind.F, Kind.B, Kind.W) if schedule.has_backward else (Kind.F,)
    parts = {part for tasks in schedule.order for task in tasks for part in _parts(task)}
    if len(parts) == len(kinds) * schedule.stages * schedule.microbatches:
        return
    lacking = next(
        task
        for kind in kinds
        for stage in range(schedule.stages)
        for microbatch in range(schedule.microbatches)
        if (task := Task(kind, stage, microbatch)) not in parts
    )
    rank = schedule.placement[lacking.stage]
    raise ScheduleError(
        ScheduleCode.NOT_COMPLETE,
        f"rank {rank} never runs {lacking}",
        span=schedule.span(rank, len(schedule.order[rank]) - 1) if schedule.order[rank] else None,
        help="every microbatch needs F, and B and W (or both in one) where there is a backward, on every stage",
    )


def _within(schedule: Schedule, found: Figures, cap: float, kept: float) -> None:
    """Raises E0722 at the first task that takes a rank over the cap."""
    for rank, peak in enumerate(found.peaks):
        if peak > cap + _TOLERANCE:
            at = _first_over(schedule, rank, cap, kept)
            raise ScheduleError(
                ScheduleCode.OVER_CAP,
                f"rank {rank} holds {peak:g} activations at its peak; the cap is {cap:g}",
                span=schedule.span(rank, at),
                notes=((f"{schedule.order[rank][at]} (its task {at}) is the first that does not fit", None),),
                help="run backwards earlier, or raise the cap",
            )


def _first_over(schedule: Schedule, rank: int, cap: float, kept: float) -> int:
    frees = (0.0, 1.0 - kept, kept, 1.0) if schedule.has_backward else (1.0, 0.0, 0.0, 0.0)
    held = 0.0
    for at, task in enumerate(schedule.order[rank]):
        held += task.kind == Kind.F
        if held / schedule.chunks > cap + _TOLERANCE:
            return at
        held -= frees[task.kind]
    raise AssertionError("the peak is over the cap, but no task takes the rank there")
