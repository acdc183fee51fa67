"""The schedule that a plan says, and errors that point into the plan."""

import pytest
from stretto.dsl import Plan
from stretto.ir.module import Module
from stretto.passes.pipelining.scheduled_pipeline import note_times, schedule_pipeline
from stretto.schedules import Costs, Kind, Request, Schedule, ScheduleCode, ScheduleError, generate, prove

WRITTEN = """
schedule mine(stages p, microbatches m) {
  stage s {
    drain { F }
    drain { B }
  }
}"""


def a_module(argument: str = '{aten.argument = {kind = "tangent"}}') -> Module:
    """A step with one argument."""
    return Module.parse(f"func.func @main(%x: tensor<f32> {argument}) -> tensor<f32> {{ return %x : tensor<f32> }}")


def schedule(items: str, more: str = "", module: Module | None = None) -> Schedule:
    plan = Plan.parse(f"mesh (pp=2, dp=2)\npipeline over pp {{ {items} }}{more}", "a.plan")
    return schedule_pipeline(plan, module or a_module()).schedule


def refused(items: str, more: str = "") -> ScheduleError:
    with pytest.raises(ScheduleError) as caught:
        schedule(items, more)
    return caught.value


def test_a_plan_names_a_schedule_for_the_ranks_of_its_axis() -> None:
    assert schedule("microbatches 4") == generate("1f1b", Request(2, 4))
    interleaved = schedule("schedule interleaved chunks 3 microbatches 4")
    assert (interleaved.ranks, interleaved.chunks, interleaved.microbatches) == (2, 3, 4)


def test_a_schedule_of_the_plan_goes_first() -> None:
    assert schedule("schedule mine microbatches 4", WRITTEN).order == generate("gpipe", Request(2, 4)).order
    assert schedule("schedule 1f1b microbatches 4", WRITTEN) == generate("1f1b", Request(2, 4))


def test_a_search_is_given_the_times_of_the_plan_else_those_of_the_module() -> None:
    costs = Costs(1, 3, 0.1, 2)
    expected = generate("zb-v", Request(2, 4, costs=costs))
    with_times = a_module()
    note_times(with_times, costs)
    assert schedule("schedule zb-v microbatches 4 times 1, 3, 0.1, 2") == expected
    assert schedule("schedule zb-v microbatches 4", module=with_times) == expected
    assert schedule("schedule zb-v microbatches 4 times 1, 1, 1", module=with_times) != expected


def test_an_unknown_schedule_is_shown_where_it_is_named() -> None:
    error = refused("schedule zbv microbatches 4", WRITTEN)
    assert (error.code, error.help) == (ScheduleCode.UNKNOWN_SCHEDULE, 'did you mean "zb-v"?')
    assert str(error.span) == "a.plan:2:20"


def test_numbers_that_a_schedule_is_not_defined_for_are_shown_in_the_plan() -> None:
    error = refused("schedule dualpipe-v microbatches 2")
    assert (error.code, str(error.span)) == (ScheduleCode.NOT_DEFINED, "a.plan:2:20")


def test_a_schedule_over_the_memory_is_shown_where_the_plan_says_it() -> None:
    error = refused("schedule gpipe microbatches 4 memory 2")
    assert (error.code, str(error.span)) == (ScheduleCode.OVER_CAP, "a.plan:2:20")
    error = refused("schedule mine microbatches 4 memory 2", WRITTEN)
    assert (error.code, str(error.span)) == (ScheduleCode.OVER_CAP, "a.plan:5:13")


@pytest.mark.parametrize("name", ["1f1b", "zb-v", "interleaved", "dualpipe-v"])
def test_the_forwards_of_a_schedule_can_run_alone(name: str) -> None:
    part = schedule(f"schedule {name} microbatches 4", module=a_module('{aten.argument = {kind = "input"}}'))
    prove(part)
    assert part.placement == generate(name, Request(2, 4)).placement
    assert {task.kind for tasks in part.order for task in tasks} == {Kind.F}


def test_what_trains_needs_a_schedule_with_backwards() -> None:
    error = refused("schedule forward-only microbatches 4")
    assert (error.code, str(error.span)) == (ScheduleCode.NOT_COMPLETE, "a.plan:2:20")
    error = refused("schedule mine microbatches 4", WRITTEN.replace("    drain { B }\n", ""))
    assert error.message == 'the schedule "mine" has no backward, and the step trains'
