"""The schedule that a plan's pipeline says, for the ranks of its axis: one of a name, or of the plan's own."""

from __future__ import annotations

from dataclasses import replace

from ..diagnostics import Span
from ..dsl.pipeline import Pipeline
from ..dsl.plan import Plan
from ..dsl.spelling import did_you_mean, listed
from .catalogue import generate, names
from .costs import Costs
from .error import ScheduleCode, ScheduleError
from .prove import prove
from .request import Request
from .schedule import Kind, Schedule, ordered
from .written import elaborate


def planned(plan: Plan, costs: Costs | None = None, *, tries: int = 0) -> Schedule:
    """The schedule of a plan's pipeline, which it must have, with its backward; it is proved.

    `costs` are the estimates for schedules that search; the plan's own `times` go first. Errors point into the plan:
    ScheduleError for a name that there is not (E0440), numbers that the schedule is not defined for (E0441) and what
    `prove` refuses (E0720 to E0724), PlanError for what a written schedule says.
    """
    pipeline = plan.pipeline
    assert pipeline is not None
    costs = Costs(*pipeline.times) if pipeline.times else costs or Costs()
    ranks = dict(plan.mesh.axes)[pipeline.axis]
    request = Request(ranks, pipeline.microbatches, pipeline.chunks, costs, pipeline.memory, tries)
    written = {schedule.name: schedule for schedule in plan.schedules}
    known = (*written, *names())
    if pipeline.schedule not in known:
        raise ScheduleError(
            ScheduleCode.UNKNOWN_SCHEDULE,
            f'unknown schedule "{pipeline.schedule}"',
            span=pipeline.span_of("schedule"),
            expected=f"expected {listed(known)}",
            help=did_you_mean(pipeline.schedule, known) or "write it out in this plan: schedule NAME (..) { .. }",
        )
    try:
        if pipeline.schedule in written:
            schedule = elaborate(written[pipeline.schedule], request)
        else:
            schedule = generate(pipeline.schedule, request)
        prove(schedule, costs, pipeline.memory)
    except ScheduleError as error:
        raise _placed(error, pipeline) from None
    return schedule


def forward_part(schedule: Schedule) -> Schedule:
    """The forwards of a schedule, for inference with stages where training has them.

    >>> from .one_chunk import one_f_one_b
    >>> len(forward_part(one_f_one_b(2, 3)).order[0])
    3
    """
    order = ordered((task for task in tasks if task.kind == Kind.F) for tasks in schedule.order)
    return replace(schedule, order=order, overlapped=frozenset(), spans=())


def _placed(error: ScheduleError, pipeline: Pipeline) -> ScheduleError:
    """The error with a place in the plan: where it has none, that of the item that it is about."""
    item = "memory" if error.code == ScheduleCode.OVER_CAP else "schedule"
    span: Span | None = error.span or pipeline.span_of(item)
    return ScheduleError(
        error.code, error.message, span=span, expected=error.expected, notes=error.notes, help=error.help
    )
