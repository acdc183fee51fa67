"""Generate and prove the schedule of a plan's `pipeline` statement, and store it in the module."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from ...dsl.pipeline import Pipeline
from ...dsl.plan import Plan
from ...dsl.spelling import did_you_mean
from ...ir.attributes import from_attribute, to_attribute
from ...ir.module import Module, argument_records
from ...schedules import CATALOGUE, Request, generate, prove
from ...schedules.costs import Costs
from ...schedules.error import ScheduleCode, ScheduleError
from ...schedules.schedule import Kind, Schedule
from ...schedules.written import elaborate

_TIMES = "comm.times"
_NAMES = ("f", "b", "w", "c", "s", "t", "e", "g")


@dataclass(frozen=True)
class ScheduledPipeline:
    """A plan's `pipeline` statement and its schedule."""

    pipeline: Pipeline
    schedule: Schedule
    costs: Costs = Costs()
    """The durations of tasks, as far as they are known."""

    @property
    def stages(self) -> int:
        """The number of virtual stages."""
        return self.schedule.stages

    @property
    def delays_weights(self) -> bool:
        """Whether the schedule has weight gradients as separate tasks (W)."""
        return any(task.kind is Kind.W for tasks in self.schedule.order for task in tasks)


def schedule_pipeline(plan: Plan, module: Module) -> ScheduledPipeline:
    """The plan's pipeline with its schedule for a module: its forwards alone if the module has no tangent.

    A schedule that searches uses the plan's `times`, else those that `note_times` stored on the module.
    Raises ScheduleError at the plan's statement for a schedule that does not exist or is not defined for the plan's
    numbers (E0440 to E0442), cannot run (E0720 to E0724), or has no backward although there is a tangent (E0724).
    """
    pipeline = plan.pipeline
    assert pipeline is not None, "the plan has no pipeline"
    costs = _with_stated_times(pipeline.times, _noted_times(module)) if pipeline.times else _noted_times(module)
    schedule = _schedule(pipeline, plan, costs)
    records = argument_records(module.functions()["main"])
    trains = any(record.get("kind") == "tangent" for record in records)
    if trains and not schedule.has_backward:
        raise ScheduleError(
            ScheduleCode.NOT_COMPLETE,
            f'the schedule "{pipeline.schedule}" has no backward, and the step trains',
            span=pipeline.span_of("schedule"),
            help="take one with backwards; in inference its forwards run alone",
        )
    return ScheduledPipeline(pipeline, schedule if trains else forwards(schedule), costs)


def note_times(module: Module, costs: Costs) -> None:
    """Store the durations of tasks on a module, for schedules that search."""
    module.operation.attributes[_TIMES] = to_attribute([getattr(costs, name) for name in _NAMES])


def _noted_times(module: Module) -> Costs:
    attributes = module.operation.attributes
    return (
        Costs(**dict(zip(_NAMES, from_attribute(attributes[_TIMES]), strict=True))) if _TIMES in attributes else Costs()
    )


def _with_stated_times(times: tuple[float, ...], estimated: Costs) -> Costs:
    """The plan's times; those of shared tasks are the estimates, scaled to the plan's unit."""
    costs = Costs(*times)
    unit = costs.whole / (estimated.whole or 1.0)
    return replace(costs, s=estimated.s * unit, t=estimated.t * unit, e=estimated.e * unit, g=estimated.g * unit)


def forwards(schedule: Schedule) -> Schedule:
    """The forwards of a schedule, in its order."""
    order = tuple(tuple(task for task in tasks if task.kind is Kind.F) for tasks in schedule.order)
    return replace(schedule, name=f"the forwards of {schedule.name}", order=order, overlapped=frozenset(), spans=())


@lru_cache(maxsize=64)
def _schedule(pipeline: Pipeline, plan: Plan, costs: Costs) -> Schedule:
    written_schedules = {written.name: written for written in plan.schedules}
    try:
        request = Request(
            dict(plan.mesh.axes)[pipeline.axis], pipeline.microbatches, pipeline.chunks, costs, pipeline.memory
        )
        if pipeline.schedule in written_schedules:
            schedule = elaborate(written_schedules[pipeline.schedule], request)
        else:
            schedule = generate(pipeline.schedule, request)
        prove(schedule, costs, pipeline.memory)
    except ScheduleError as error:
        if error.span is not None:
            raise
        names = (*written_schedules, *CATALOGUE)
        unknown = error.code == ScheduleCode.UNKNOWN_SCHEDULE
        raise ScheduleError(
            error.code,
            error.message,
            span=pipeline.span_of("schedule"),
            expected=error.expected,
            notes=error.notes,
            help=did_you_mean(pipeline.schedule, names) if unknown else error.help,
        ) from None
    return schedule
