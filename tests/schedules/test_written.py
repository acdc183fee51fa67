"""Written schedules become tasks, and those that cannot run are refused where they are written."""

from __future__ import annotations

import pytest
from stretto.dsl import PlanError
from stretto.dsl.error import WrittenCode
from stretto.dsl.schedule import WrittenSchedule
from stretto.schedules import Request, Schedule, ScheduleCode, ScheduleError, generate, prove
from stretto.schedules.written import elaborate

HEAD = "schedule mine(stages p, microbatches m) {\n  stage s {\n    "
TAIL = "\n  }\n}"
ONE_F_ONE_B = "warmup min(p - s - 1, m) { F }\n    steady m - min(p - s - 1, m) { F B }\n    drain { B }"


def made(body: str, request: Request, head: str = HEAD) -> Schedule:
    return elaborate(WrittenSchedule.parse(head + body + TAIL, "a.schedule"), request)


def refused(body: str, request: Request, cap: float | None = None) -> ScheduleError:
    with pytest.raises(ScheduleError) as caught:
        prove(made(body, request), cap=cap)
    return caught.value


@pytest.mark.parametrize(("ranks", "microbatches"), [(1, 1), (2, 3), (4, 2), (4, 8), (5, 7)])
def test_1f1b_written_out_is_1f1b(ranks: int, microbatches: int) -> None:
    request = Request(ranks, microbatches)
    assert made(ONE_F_ONE_B, request).order == generate("1f1b", request).order


def test_zb_h1_can_be_written_out() -> None:
    body = (
        "warmup min(p - s, m) { F }\n steady min(s, m - min(p - s, m)) { B F }\n"
        "steady max(0, m - min(p - s, m) - s) { B W F }\n drain { B W }"
    )
    request = Request(4, 8)
    assert prove(made(body, request)) == prove(generate("zb-h1", request))


def test_a_v_with_chunks_can_be_written_out() -> None:
    head = "schedule mine(stages p, microbatches m, chunks v) {\n  placement v\n  stage s {\n    "
    schedule = made("drain { F[0] }\n drain { F[v - 1] }\n drain { BW[1] }\n drain { BW[0] }", Request(2, 3), head)
    assert schedule.placement == (0, 1, 1, 0)
    assert prove(schedule).peaks == (3, 3)


def test_a_b_without_any_w_is_the_full_backward() -> None:
    assert {task.kind.name for task in made(ONE_F_ONE_B, Request(2, 2)).order[0]} == {"F", "BW"}
    assert {task.kind.name for task in made("drain { F }\n drain { B W }", Request(2, 2)).order[0]} == {"F", "B", "W"}


def test_w_belongs_to_the_backwards_that_left_it() -> None:
    schedule = made("warmup m { F }\n steady 1 { BW }\n drain { B W }", Request(1, 3))
    assert [str(task) for task in schedule.order[0][-2:]] == [
        "B of microbatch 2 on stage 0", "W of microbatch 2 on stage 0",
    ]  # fmt: skip
    assert prove(schedule).peak == 3


def test_a_deadlock_is_shown_where_both_ranks_wait() -> None:
    error = refused("warmup 1 + s { F }\n    drain { B F }", Request(2, 3))
    assert error.code == ScheduleCode.DEADLOCK
    assert str(error.span) == "a.schedule:4:13"
    assert [str(place) for _, place in error.notes] == ["a.schedule:4:13", "a.schedule:3:20"]


def test_a_gradient_before_it_exists_is_refused_with_both_places() -> None:
    error = refused("warmup m { F }\n    drain { W B }", Request(1, 2))
    assert error.code == ScheduleCode.TOO_EARLY
    assert (str(error.span), str(error.notes[0][1])) == ("a.schedule:4:13", "a.schedule:4:15")


def test_memory_over_the_cap_is_shown_at_the_forward_that_does_not_fit() -> None:
    error = refused(ONE_F_ONE_B, Request(4, 8), cap=3)
    assert error.code == ScheduleCode.OVER_CAP and str(error.span) == "a.schedule:4:36"


def test_a_microbatch_that_does_not_exist_is_refused() -> None:
    error = refused("warmup m + 1 { F }\n drain { B }", Request(2, 4))
    assert error.code == ScheduleCode.NO_SUCH_TASK and "F of microbatch 4 on stage 0" in error.message


def test_a_huge_count_ends_at_the_first_microbatch_too_many() -> None:
    assert refused("warmup 999999999 { F }", Request(2, 4)).code == ScheduleCode.NO_SUCH_TASK


def test_a_backward_that_is_left_out_is_refused() -> None:
    error = refused("warmup m { F }\n steady m - 1 { B }", Request(2, 4))
    assert error.code == ScheduleCode.NOT_COMPLETE and str(error.span) == "a.schedule:4:17"


@pytest.mark.parametrize(
    ("body", "code", "place"),
    [
        ("warmup q { F }", WrittenCode.UNKNOWN_NAME, "a.schedule:3:12"),
        ("warmup p / (s - s) { F }", WrittenCode.DIVISION, "a.schedule:3:14"),
        ("warmup 1 - s { F }", WrittenCode.NEGATIVE_COUNT, "a.schedule:3:5"),
        ("warmup 1 { F[1] }", WrittenCode.NO_SUCH_CHUNK, "a.schedule:3:16"),
    ],
)
def test_a_mistake_that_shows_with_numbers_points_at_its_place(body: str, code: WrittenCode, place: str) -> None:
    with pytest.raises(PlanError) as caught:
        made(body, Request(3, 4))
    assert (caught.value.code, str(caught.value.span)) == (code, place)


def test_chunks_that_the_text_does_not_name_are_refused() -> None:
    with pytest.raises(ScheduleError) as caught:
        made(ONE_F_ONE_B, Request(2, 2, chunks=2))
    assert caught.value.code == ScheduleCode.NOT_DEFINED
