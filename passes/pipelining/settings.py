"""What a plan says of its pipeline, as the passes need it: the schedule made and proved."""

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
class Settings:
    """The pipeline of a plan, and its schedule."""

    said: Pipeline
    schedule: Schedule
    costs: Costs = Costs()
    """How long tasks take, as far as that is known."""

    @property
    def stages(self) -> int:
        """How many virtual stages there are."""
        return self.schedule.stages

    @property
    def delays_weights(self) -> bool:
        """Whether the schedule has gradients of weights as tasks of their own."""
        return any(task.kind is Kind.W for tasks in self.schedule.order for task in tasks)


def settings_of(plan: Plan, module: Module) -> Settings:
    """The pipeline of a plan that has one, as a module needs it: forwards alone where the module has no tangent.

    A schedule that searches is given the times that the plan says, else those that are noted on the module.
    Raises ScheduleError at the plan's statement for a schedule that is not there, is not defined for the plan's numbers
    (E0440 to E0442), cannot run (E0720 to E0724), or has no backward where there is a tangent (E0724).
    """
    said = plan.pipeline
    assert said is not None, "a plan without a pipeline has no settings"
    costs = _said(said.times, _noted(module)) if said.times else _noted(module)
    schedule = _schedule(said, plan, costs)
    records = argument_records(module.functions()["main"])
    trains = any(record.get("kind") == "tangent" for record in records)
    if trains and not schedule.has_backward:
        raise ScheduleError(
            ScheduleCode.NOT_COMPLETE,
            f'the schedule "{said.schedule}" has no backward, and the step trains',
            span=said.span_of("schedule"),
            help="take one with backwards; in inference its forwards run alone",
        )
    return Settings(said, schedule if trains else forwards(schedule), costs)


def note_times(module: Module, costs: Costs) -> None:
    """Note on a module how long its tasks take, for schedules that search."""
    module.operation.attributes[_TIMES] = to_attribute([getattr(costs, name) for name in _NAMES])


def _noted(module: Module) -> Costs:
    attributes = module.operation.attributes
    return (
        Costs(**dict(zip(_NAMES, from_attribute(attributes[_TIMES]), strict=True))) if _TIMES in attributes else Costs()
    )


def _said(times: tuple[float, ...], noted: Costs) -> Costs:
    """The times that a plan says; those of what all ranks share are as noted, in the plan's unit."""
    costs = Costs(*times)
    unit = costs.whole / (noted.whole or 1.0)
    return replace(costs, s=noted.s * unit, t=noted.t * unit, e=noted.e * unit, g=noted.g * unit)


def forwards(schedule: Schedule) -> Schedule:
    """The forwards of a schedule, in its order."""
    order = tuple(tuple(task for task in tasks if task.kind is Kind.F) for tasks in schedule.order)
    return replace(schedule, name=f"the forwards of {schedule.name}", order=order, overlapped=frozenset(), spans=())


@lru_cache(maxsize=64)
def _schedule(said: Pipeline, plan: Plan, costs: Costs) -> Schedule:
    written = {each.name: each for each in plan.schedules}
    try:
        request = Request(dict(plan.mesh.axes)[said.axis], said.microbatches, said.chunks, costs, said.memory)
        if said.schedule in written:
            schedule = elaborate(written[said.schedule], request)
        else:
            schedule = generate(said.schedule, request)
        prove(schedule, costs, said.memory)
    except ScheduleError as error:
        if error.span is not None:
            raise
        names = (*written, *CATALOGUE)
        unknown = error.code == ScheduleCode.UNKNOWN_SCHEDULE
        raise ScheduleError(
            error.code,
            error.message,
            span=said.span_of("schedule"),
            expected=error.expected,
            notes=error.notes,
            help=did_you_mean(said.schedule, names) if unknown else error.help,
        ) from None
    return schedule
