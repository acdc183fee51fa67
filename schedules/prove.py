"""Prove that a schedule can run: each task once and on its rank, after its dependencies, within the memory cap."""

from __future__ import annotations

from .costs import Costs
from .error import ScheduleCode, ScheduleError
from .figures import Figures, figures, freed_activations
from .schedule import Kind, Schedule, Task
from .simulate import barrier_kinds, simulate

_TOLERANCE = 1e-9
_BITS = (1, 2, 4, 6)
"""The parts that a task does, as bits, indexed by kind: F, B, W, and BW as both."""


def prove(schedule: Schedule, costs: Costs | None = None, cap: float | None = None) -> Figures:
    """The figures of a schedule that can run, else a counterexample as ScheduleError.

    `cap` is the most activations of a rank, in those of one microbatch on all stages of a rank. Raises E0720
    (deadlock), E0721 (a task before its dependency), E0722 (over the cap), E0723 (a task that does not exist, or
    twice), E0724 (a missing task), E0725 (different orders of barriers).
    """
    costs = costs or Costs()
    done = _check_tasks(schedule)
    _check_shared_tasks(schedule)
    if not any(schedule.order):
        _check_complete(schedule, done)  # nothing runs that could be measured
    proved = figures(schedule, costs, simulate(schedule, costs))
    _check_complete(schedule, done)
    if cap is not None:
        _check_cap(schedule, proved, cap, costs.kept)
    return proved


def _check_tasks(schedule: Schedule) -> bytearray:
    """The parts done for each (stage, microbatch), as bits. Raises E0723."""
    placement, stages, microbatches = schedule.placement, schedule.stages, schedule.microbatches
    done = bytearray(stages * microbatches)
    for rank, tasks in enumerate(schedule.order):
        for position, (kind, stage, microbatch) in enumerate(tasks):
            if kind >= Kind.S:
                continue
            if not (0 <= stage < stages and 0 <= microbatch < microbatches):
                raise _no_such_task(
                    schedule, rank, position, f"there are {stages} stages and {microbatches} microbatches"
                )
            if placement[stage] != rank:
                raise _no_such_task(schedule, rank, position, f"stage {stage} is on rank {placement[stage]}")
            place = stage * microbatches + microbatch
            if done[place] & _BITS[kind]:
                raise _no_such_task(schedule, rank, position, _done_before(tasks, position))
            done[place] |= _BITS[kind]
    return done


def _done_before(tasks: tuple[Task, ...], position: int) -> str:
    """The reason for a task that repeats (part of) an earlier one."""
    later = tasks[position]
    for earlier, task in enumerate(tasks):
        common = _BITS[task.kind] & _BITS[later.kind]
        if common and task[1:] == later[1:]:
            part = later._replace(kind=next(kind for kind in Kind if _BITS[kind] & common))
            return f"its task {earlier} already did {part}"
    raise AssertionError("a task repeats another, which is not on its rank")


def _check_shared_tasks(schedule: Schedule) -> None:
    """Check that each rank has each shared task once, and that all ranks have the same order of barriers.

    Raises E0723 for a surplus task, E0724 for a missing one, E0725 for different orders.
    """
    first_order: list[tuple[Kind, int]] = []
    barriers = barrier_kinds(schedule)
    expected = {(kind, microbatch) for kind in schedule.shared for microbatch in range(schedule.microbatches)}
    for rank in range(schedule.ranks):
        positions = _shared_places(schedule, rank)
        for kind, microbatch in sorted(expected ^ positions.keys()):
            lacking_rank = rank if (kind, microbatch) in expected else 0
            raise _never_runs(
                schedule, lacking_rank, Task(kind, lacking_rank, microbatch), "give every rank its part of the task"
            )
        barrier_order = [shared for shared in positions if shared[0] in barriers]
        if rank and barrier_order != first_order:
            own_task, first_task = next(
                pair for pair in zip(barrier_order, first_order, strict=True) if pair[0] != pair[1]
            )
            raise ScheduleError(
                ScheduleCode.BARRIER_ORDER,
                f"rank {rank} has the barrier of {Task(own_task[0], rank, own_task[1])} "
                f"where rank 0 has that of {Task(first_task[0], 0, first_task[1])}",
                span=schedule.span(rank, positions[own_task]),
                help="give all ranks the same order of shared tasks",
            )
        first_order = barrier_order


def _shared_places(schedule: Schedule, rank: int) -> dict[tuple[Kind, int], int]:
    """The position of each shared task of a rank, by kind and microbatch, in order. Raises E0723."""
    positions: dict[tuple[Kind, int], int] = {}
    for position, (kind, owner, microbatch) in enumerate(schedule.order[rank]):
        if kind < Kind.S:
            continue
        if owner != rank or not 0 <= microbatch < schedule.microbatches:
            raise _no_such_task(schedule, rank, position, "a shared task names its own rank and an existing microbatch")
        if (kind, microbatch) in positions:
            raise _no_such_task(schedule, rank, position, f"its task {positions[kind, microbatch]} already did it")
        positions[kind, microbatch] = position
    return positions


def _never_runs(schedule: Schedule, rank: int, task: Task, help: str) -> ScheduleError:
    span = schedule.span(rank, len(schedule.order[rank]) - 1) if schedule.order[rank] else None
    return ScheduleError(ScheduleCode.NOT_COMPLETE, f"rank {rank} never runs {task}", span=span, help=help)


def _no_such_task(schedule: Schedule, rank: int, position: int, why: str) -> ScheduleError:
    task = schedule.order[rank][position]
    return ScheduleError(
        ScheduleCode.NO_SUCH_TASK,
        f"rank {rank} cannot run {task} (its task {position}): {why}",
        span=schedule.span(rank, position),
        expected=f"expected stages 0..{schedule.stages - 1} and microbatches 0..{schedule.microbatches - 1}, each once",
    )


def _check_complete(schedule: Schedule, done: bytearray) -> None:
    """Raises E0724 if a stage lacks a task of a microbatch."""
    whole = 7 if schedule.has_backward else 1
    if done.count(whole) == len(done):
        return
    parts = (Kind.F, Kind.B, Kind.W)
    kind, place = next(
        (part, index) for part in parts for index, bits in enumerate(done) if whole & ~bits & _BITS[part]
    )
    missing = Task(kind, *divmod(place, schedule.microbatches))
    help = "run F, and in training B and W (or BW), of every microbatch on every stage"
    raise _never_runs(schedule, schedule.placement[missing.stage], missing, help)


def _check_cap(schedule: Schedule, measured: Figures, cap: float, kept: float) -> None:
    """Raises E0722 at the first task that exceeds the cap."""
    for rank, peak in enumerate(measured.peaks):
        if peak > cap + _TOLERANCE:
            position = _first_task_over(schedule, rank, cap, kept)
            raise ScheduleError(
                ScheduleCode.OVER_CAP,
                f"rank {rank} holds {peak:g} activations at its peak; the cap is {cap:g}",
                span=schedule.span(rank, position),
                notes=(
                    (f"{schedule.order[rank][position]} (its task {position}) is the first that does not fit", None),
                ),
                help="run backwards earlier, or raise the cap",
            )


def _first_task_over(schedule: Schedule, rank: int, cap: float, kept: float) -> int:
    freed = freed_activations(schedule, kept)
    activations = 0.0
    for position, task in enumerate(schedule.order[rank]):
        activations += task.kind == Kind.F
        if activations / schedule.chunks > cap + _TOLERANCE:
            return position
        activations -= freed[task.kind]
    raise AssertionError("the peak is over the cap, but no task takes the rank there")
