"""Whether a schedule can run: every task once and on its rank, nothing before what it needs, memory in bounds."""

from __future__ import annotations

from .costs import Costs
from .error import ScheduleCode, ScheduleError
from .figures import Figures, figures, released
from .schedule import Kind, Schedule, Task
from .simulate import meetings, simulate

_TOLERANCE = 1e-9
_BITS = (1, 2, 4, 6)
"""What a task of each kind does, by the kind's number: F, B, W, and both of them."""


def prove(schedule: Schedule, costs: Costs | None = None, cap: float | None = None) -> Figures:
    """The figures of a schedule that can run; a counterexample as ScheduleError of one that cannot.

    `cap` is the most activations that a rank may hold, in those of one microbatch on all that a rank holds. Raises
    E0720 (deadlock), E0721 (something is used before it exists), E0722 (over the cap), E0723 (a task that is not
    there to run, or runs twice), E0724 (a task is missing), E0725 (ranks meet in different orders).
    """
    costs = costs or Costs()
    done = _tasks_exist_once(schedule)
    _all_meet(schedule)
    proved = figures(schedule, costs, simulate(schedule, costs))
    _all_there(schedule, done)
    if cap is not None:
        _within(schedule, proved, cap, costs.kept)
    return proved


def _tasks_exist_once(schedule: Schedule) -> bytearray:
    """What is done of each microbatch on each stage, as bits. Raises E0723."""
    placement, stages, microbatches = schedule.placement, schedule.stages, schedule.microbatches
    done = bytearray(stages * microbatches)
    for rank, tasks in enumerate(schedule.order):
        for position, (kind, stage, microbatch) in enumerate(tasks):
            if kind >= Kind.S:
                continue
            if not (0 <= stage < stages and 0 <= microbatch < microbatches):
                raise _no_such(schedule, rank, position, f"there are {stages} stages and {microbatches} microbatches")
            if placement[stage] != rank:
                raise _no_such(schedule, rank, position, f"stage {stage} is on rank {placement[stage]}")
            place = stage * microbatches + microbatch
            if done[place] & _BITS[kind]:
                raise _no_such(schedule, rank, position, _done_before(tasks, position))
            done[place] |= _BITS[kind]
    return done


def _done_before(tasks: tuple[Task, ...], position: int) -> str:
    """Which task did (part of) the same as a later one, and what."""
    later = tasks[position]
    for earlier, task in enumerate(tasks):
        common = _BITS[task.kind] & _BITS[later.kind]
        if common and task[1:] == later[1:]:
            part = later._replace(kind=next(kind for kind in Kind if _BITS[kind] & common))
            return f"its task {earlier} did {part} already"
    raise AssertionError("a task was done before, but by no task")


def _all_meet(schedule: Schedule) -> None:
    """Whether each rank has each shared task once, and all ranks meet in the same order.

    Raises E0723 for a task too much, E0724 for one that is missing, E0725 for ranks that differ in their order.
    """
    first_order: list[tuple[Kind, int]] = []
    kinds = meetings(schedule)
    expected = {(kind, microbatch) for kind in schedule.shared for microbatch in range(schedule.microbatches)}
    for rank in range(schedule.ranks):
        places = _shared_places(schedule, rank)
        for kind, microbatch in sorted(expected ^ places.keys()):
            lacks = rank if (kind, microbatch) in expected else 0
            raise _never_runs(schedule, lacks, Task(kind, lacks, microbatch), "every rank does its part of it")
        barrier_order = [task_key for task_key in places if task_key[0] in kinds]
        if rank and barrier_order != first_order:
            own_task, first_task = next(
                pair for pair in zip(barrier_order, first_order, strict=True) if pair[0] != pair[1]
            )
            raise ScheduleError(
                ScheduleCode.MEETINGS_DIFFER,
                f"rank {rank} meets the others for {Task(own_task[0], rank, own_task[1])}, "
                f"where rank 0 does for {Task(first_task[0], 0, first_task[1])}",
                span=schedule.span(rank, places[own_task]),
                help="let all ranks do what they share in the same order",
            )
        first_order = barrier_order


def _shared_places(schedule: Schedule, rank: int) -> dict[tuple[Kind, int], int]:
    """Where a rank runs each shared task, by kind and microbatch, in order. Raises E0723."""
    positions: dict[tuple[Kind, int], int] = {}
    for position, (kind, owner, microbatch) in enumerate(schedule.order[rank]):
        if kind < Kind.S:
            continue
        if owner != rank or not 0 <= microbatch < schedule.microbatches:
            raise _no_such(schedule, rank, position, "a rank does its own part of each microbatch")
        if (kind, microbatch) in positions:
            raise _no_such(schedule, rank, position, f"its task {positions[kind, microbatch]} did it already")
        positions[kind, microbatch] = position
    return positions


def _never_runs(schedule: Schedule, rank: int, task: Task, help: str) -> ScheduleError:
    span = schedule.span(rank, len(schedule.order[rank]) - 1) if schedule.order[rank] else None
    return ScheduleError(ScheduleCode.NOT_COMPLETE, f"rank {rank} never runs {task}", span=span, help=help)


def _no_such(schedule: Schedule, rank: int, position: int, why: str) -> ScheduleError:
    task = schedule.order[rank][position]
    return ScheduleError(
        ScheduleCode.NO_SUCH_TASK,
        f"rank {rank} cannot run {task} (its task {position}): {why}",
        span=schedule.span(rank, position),
        expected=f"expected stages 0..{schedule.stages - 1} and microbatches 0..{schedule.microbatches - 1}, each once",
    )


def _all_there(schedule: Schedule, done: bytearray) -> None:
    """Raises E0724 where a stage lacks a task of some microbatch."""
    whole = 7 if schedule.has_backward else 1
    if done.count(whole) == len(done):
        return
    parts = (Kind.F, Kind.B, Kind.W)
    kind, place = next(
        (part, index) for part in parts for index, bits in enumerate(done) if whole & ~bits & _BITS[part]
    )
    lacking = Task(kind, *divmod(place, schedule.microbatches))
    help = "every microbatch needs F, and B and W (or both in one) where there is a backward, on every stage"
    raise _never_runs(schedule, schedule.placement[lacking.stage], lacking, help)


def _within(schedule: Schedule, measured: Figures, cap: float, kept: float) -> None:
    """Raises E0722 at the first task that takes a rank over the cap."""
    for rank, peak in enumerate(measured.peaks):
        if peak > cap + _TOLERANCE:
            position = _first_over(schedule, rank, cap, kept)
            raise ScheduleError(
                ScheduleCode.OVER_CAP,
                f"rank {rank} holds {peak:g} activations at its peak; the cap is {cap:g}",
                span=schedule.span(rank, position),
                notes=(
                    (f"{schedule.order[rank][position]} (its task {position}) is the first that does not fit", None),
                ),
                help="run backwards earlier, or raise the cap",
            )


def _first_over(schedule: Schedule, rank: int, cap: float, kept: float) -> int:
    freed = released(schedule, kept)
    activations = 0.0
    for position, task in enumerate(schedule.order[rank]):
        activations += task.kind == Kind.F
        if activations / schedule.chunks > cap + _TOLERANCE:
            return position
        activations -= freed[task.kind]
    raise AssertionError("the peak is over the cap, but no task takes the rank there")
