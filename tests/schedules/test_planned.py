"""The schedule that a plan says, and errors that point into the plan."""

import pytest
from stretto.dsl import Plan
from stretto.schedules import Costs, Kind, Request, ScheduleCode, ScheduleError, generate, prove
from stretto.schedules.planned import forward_part, planned

WRITTEN = """
schedule mine(stages p, microbatches m) {
  stage s {
    drain { F }
    drain { B }
  }
}"""


def plan(items: str, more: str = "") -> Plan:
    return Plan.parse(f"mesh (pp=2, dp=2)\npipeline over pp {{ {items} }}{more}", "gpt.plan")


def refused(items: str, more: str = "") -> ScheduleError:
    with pytest.raises(ScheduleError) as caught:
        planned(plan(items, more))
    return caught.value


def test_a_plan_names_a_schedule_for_the_ranks_of_its_axis() -> None:
    assert planned(plan("microbatches 4")) == generate("1f1b", Request(2, 4))
    found = planned(plan("schedule interleaved chunks 3 microbatches 4"))
    assert (found.ranks, found.chunks, found.microbatches) == (2, 3, 4)


def test_a_schedule_of_the_plan_goes_first() -> None:
    found = planned(plan("schedule mine microbatches 4", WRITTEN))
    assert found.order == generate("gpipe", Request(2, 4)).order
    assert planned(plan("schedule 1f1b microbatches 4", WRITTEN)) == generate("1f1b", Request(2, 4))


def test_times_of_the_plan_go_to_schedules_that_search() -> None:
    costs = Costs(1, 3, 0.1, 2)
    said = planned(plan("schedule zb-v microbatches 4 times 1, 3, 0.1, 2"), Costs(5, 5, 5))
    assert said == generate("zb-v", Request(2, 4, costs=costs)) == planned(plan("schedule zb-v microbatches 4"), costs)
    assert said != planned(plan("schedule zb-v microbatches 4"))


def test_an_unknown_schedule_is_shown_where_it_is_named() -> None:
    error = refused("schedule zbv microbatches 4", WRITTEN)
    assert (error.code, error.help) == (ScheduleCode.UNKNOWN_SCHEDULE, 'did you mean "zb-v"?')
    assert error.span is not None
    assert (error.span.line, error.span.column) == (2, 20)
    assert error.expected.startswith("expected mine, gpipe")


def test_numbers_that_a_schedule_is_not_defined_for_are_shown_in_the_plan() -> None:
    error = refused("schedule dualpipe-v microbatches 2")
    assert (error.code, str(error.span)) == (ScheduleCode.NOT_DEFINED, "gpt.plan:2:20")


def test_a_schedule_over_the_memory_is_shown_in_the_plan() -> None:
    error = refused("schedule gpipe microbatches 4 memory 2")
    assert (error.code, str(error.span)) == (ScheduleCode.OVER_CAP, "gpt.plan:2:50")
    error = refused("schedule mine microbatches 4 memory 2", WRITTEN)
    assert (error.code, str(error.span)) == (ScheduleCode.OVER_CAP, "gpt.plan:5:13")


@pytest.mark.parametrize("name", ["1f1b", "zb-v", "interleaved", "dualpipe-v"])
def test_the_forwards_of_a_schedule_can_run_alone(name: str) -> None:
    whole = generate(name, Request(2, 4))
    part = forward_part(whole)
    prove(part)
    assert part.placement == whole.placement
    assert {task.kind for tasks in part.order for task in tasks} == {Kind.F}
