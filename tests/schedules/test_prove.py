"""Schedules that cannot run are refused with the tasks that show why."""

from __future__ import annotations

from dataclasses import replace

import pytest
from stretto.schedules import Costs, Kind, Request, Schedule, ScheduleCode, ScheduleError, Task, generate, prove

F, B, W, BW = list(Kind)[:4]


def made(*rows: list[tuple[Kind, int, int]], microbatches: int = 1, chunks: int = 1) -> Schedule:
    """A schedule of (kind, stage, microbatch), stages in order of ranks."""
    placement = tuple(range(len(rows))) * chunks
    return Schedule(
        "made", len(rows), microbatches, placement, tuple(tuple(Task(*item) for item in order) for order in rows)
    )


def refused(schedule: Schedule, cap: float | None = None) -> ScheduleError:
    with pytest.raises(ScheduleError) as caught:
        prove(schedule, cap=cap)
    return caught.value


def test_a_deadlock_names_the_cycle_of_ranks_and_their_tasks() -> None:
    first = [(F, 0, 0), (BW, 0, 0), (F, 0, 1), (BW, 0, 1)]
    second = [(F, 1, 0), (F, 1, 1), (BW, 1, 0), (BW, 1, 1)]
    error = refused(made(first, second, microbatches=2))
    assert error.code == ScheduleCode.DEADLOCK
    assert error.message == "deadlock: ranks 0 -> 1 -> 0 wait for each other"
    assert [message for message, _ in error.notes] == [
        "rank 0: BW of microbatch 0 on stage 0 waits for B of microbatch 0 on stage 1",
        "rank 1: F of microbatch 1 on stage 1 waits for F of microbatch 1 on stage 0",
    ]


def test_a_rank_outside_the_cycle_is_not_blamed() -> None:
    first = [(F, 0, 0), (F, 0, 1), (BW, 0, 0), (BW, 0, 1)]
    second = [(F, 1, 0), (BW, 1, 0), (F, 1, 1), (BW, 1, 1)]
    third = [(F, 2, 0), (F, 2, 1), (BW, 2, 0), (BW, 2, 1)]
    assert refused(made(first, second, third, microbatches=2)).message.endswith("ranks 1 -> 2 -> 1 wait for each other")


def test_a_backward_before_its_own_forward_is_too_early() -> None:
    error = refused(made([(BW, 0, 0), (F, 0, 0)]))
    assert error.code == ScheduleCode.TOO_EARLY
    assert "BW of microbatch 0 on stage 0 before the result" in error.message


def test_a_weight_gradient_before_its_gradient_is_too_early() -> None:
    error = refused(made([(F, 0, 0), (W, 0, 0), (B, 0, 0)]))
    assert error.code == ScheduleCode.TOO_EARLY and "before the gradient that it reads" in error.message
    assert error.notes[0][0] == "B of microbatch 0 on stage 0 is task 2 of the rank, and this is task 1"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ([(F, 1, 0), (BW, 0, 0)], "there are 1 stages and 1 microbatches"),
        ([(F, 0, 1), (BW, 0, 0)], "there are 1 stages and 1 microbatches"),
        ([(F, 0, 0), (F, 0, 0), (BW, 0, 0)], "its task 0 already did F of microbatch 0 on stage 0"),
        ([(F, 0, 0), (BW, 0, 0), (W, 0, 0)], "its task 1 already did W of microbatch 0 on stage 0"),
    ],
)
def test_a_task_that_is_not_there_or_was_done_is_refused(row: list[tuple[Kind, int, int]], why: str) -> None:
    error = refused(made(row))
    assert error.code == ScheduleCode.NO_SUCH_TASK and why in error.message


def test_a_stage_of_another_rank_is_refused() -> None:
    error = refused(made([(F, 0, 0), (F, 1, 0)], []))
    assert error.code == ScheduleCode.NO_SUCH_TASK and "stage 1 is on rank 1" in error.message


@pytest.mark.parametrize(
    ("rows", "lacking"),
    [
        (([(F, 0, 0), (B, 0, 0)],), "rank 0 never runs W of microbatch 0 on stage 0"),
        (([(F, 0, 0), (BW, 0, 0)], [(F, 1, 0)]), "no rank runs B of microbatch 0 on stage 1"),
        (([(F, 0, 0)], []), "rank 1 never runs F of microbatch 0 on stage 1"),
    ],
)
def test_a_missing_task_is_named(rows: tuple[list[tuple[Kind, int, int]], ...], lacking: str) -> None:
    error = refused(made(*rows))
    assert error.code == ScheduleCode.NOT_COMPLETE and lacking in error.message


def test_memory_over_the_cap_names_the_first_task_that_does_not_fit() -> None:
    error = refused(generate("gpipe", Request(2, 4)), cap=3)
    assert error.code == ScheduleCode.OVER_CAP
    assert error.message == "rank 0 holds 4 activations at its peak; the cap is 3"
    assert error.notes[0][0].startswith("F of microbatch 3 on stage 0 (its task 3)")


def test_what_w_keeps_alive_counts() -> None:
    schedule = generate("zb-h2", Request(4, 8))
    assert prove(schedule, Costs(kept=1.0)).peak == 7
    assert prove(schedule, Costs(kept=0.0)).peaks == (7, 5, 3, 1)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ScheduleError) as caught:
        generate("1f1", Request(2, 2))
    assert caught.value.code == ScheduleCode.UNKNOWN_SCHEDULE and caught.value.help == 'did you mean "1f1b"?'


@pytest.mark.parametrize(
    ("name", "request_", "needs"),
    [
        ("dualpipe-v", Request(4, 7), "at least 8 microbatches for 4 stages, not 7"),
        ("1f1b", Request(4, 8, chunks=2), "1 chunk on each rank, not 2"),
        ("zb-v", Request(4, 8, chunks=1), "2 chunks on each rank, not 1"),
        ("zb-auto", Request(4, 8, cap=0.5), "memory cap of 0.5"),
        ("auto", Request(2, 2, cap=0.5), "memory cap of 0.5"),
    ],
)
def test_numbers_for_which_a_schedule_is_not_defined_say_what_it_needs(
    name: str, request_: Request, needs: str
) -> None:
    with pytest.raises(ScheduleError) as caught:
        generate(name, request_)
    assert caught.value.code == ScheduleCode.NOT_DEFINED and needs in caught.value.message


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0), (1, 1, 0)])
def test_numbers_below_one_are_refused(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ScheduleError) as caught:
        Request(*numbers)
    assert caught.value.code == ScheduleCode.NOT_DEFINED


@pytest.mark.parametrize("times", [(-1, 1, 1), (1, float("nan"), 1), (1, 1, float("inf")), (0, 0, 0)])
def test_invalid_times_are_refused(times: tuple[float, ...]) -> None:
    with pytest.raises(ScheduleError) as caught:
        Costs(*times)
    assert caught.value.code == ScheduleCode.BAD_COSTS


def test_a_share_above_one_is_refused() -> None:
    with pytest.raises(ScheduleError) as caught:
        Costs(kept=1.5)
    assert caught.value.code == ScheduleCode.BAD_COSTS


def test_one_changed_task_of_a_good_schedule_is_found() -> None:
    good = generate("zb-h1", Request(3, 4))
    orders = list(good.order)
    orders[1] = (orders[1][1], orders[1][0], *orders[1][2:])
    assert prove(good).peak == 3
    assert refused(replace(good, order=(orders[0], tuple(reversed(orders[1])), orders[2]))).code in set(ScheduleCode)
