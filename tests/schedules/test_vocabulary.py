"""What all ranks share of a vocabulary, woven into every schedule."""

from __future__ import annotations

from dataclasses import replace

import pytest
from stretto.schedules import Costs, Kind, Request, Schedule, ScheduleCode, ScheduleError, Task, generate, prove
from stretto.schedules.generators.vocabulary import share_vocabulary
from stretto.schedules.schedule import ordered

OUTPUT = frozenset({Kind.S, Kind.T})
ALL = OUTPUT | {Kind.E, Kind.G}
NAMES = ("gpipe", "1f1b", "interleaved", "breadth-first", "zb-h1", "zb-h2", "zb-auto", "v-half", "v-min")
COSTS = Costs(s=0.3, t=0.2)


def both(name: str, barriers: int, ranks: int = 4, microbatches: int = 8) -> tuple[Schedule, Schedule]:
    """A schedule, and the same with the output's work shared."""
    plain = generate(name, Request(ranks, microbatches, costs=COSTS))
    return plain, share_vocabulary(plain, OUTPUT, barriers, COSTS)


@pytest.mark.parametrize("barriers", [1, 2])
@pytest.mark.parametrize("name", [*NAMES, "zb-v"])
def test_the_shared_work_takes_its_own_time_and_no_more(name: str, barriers: int) -> None:
    """m (s + t) above the schedule's own time. Source: arXiv 2411.05288, section 5: no bubble is added."""
    plain, shared = both(name, barriers)
    assert prove(shared, COSTS).makespan == pytest.approx(prove(plain, COSTS).makespan + 8 * (COSTS.s + COSTS.t))


@pytest.mark.parametrize(("barriers", "peak"), [(1, 5), (2, 6)])
def test_1f1b_holds_one_more_microbatch_per_barrier(barriers: int, peak: int) -> None:
    """p + 1 and p + 2. Source: arXiv 2411.05288, section 5.2."""
    _, shared = both("1f1b", barriers)
    assert prove(shared, COSTS).peak == peak


@pytest.mark.parametrize("name", [*NAMES, "zb-v", "dualpipe-v"])
def test_every_rank_has_every_shared_task_once_and_the_same_order_of_barriers(name: str) -> None:
    costs = Costs(c=0.1, e=0.05, g=0.05)
    plain = generate(name, Request(2, 5, costs=costs))
    shared = share_vocabulary(plain, ALL, 1, costs)
    prove(shared, costs)
    for rank, tasks in enumerate(shared.order):
        assert sorted(task for task in tasks if task.kind in ALL) == [
            Task(kind, rank, index) for kind in sorted(ALL) for index in range(5)
        ]
        assert sorted(t for t in tasks if t.kind not in ALL) == sorted(plain.order[rank])
    assert len({tuple(t[0::2] for t in tasks if t.kind in (Kind.S, Kind.E)) for tasks in shared.order}) == 1


def test_a_cap_allows_fewer_forwards_ahead_or_is_refused() -> None:
    plain = generate("1f1b", Request(4, 8))
    assert prove(share_vocabulary(plain, OUTPUT, 1, COSTS, 4), COSTS).peak == 4
    with pytest.raises(ScheduleError, match="the cap is 3"):
        share_vocabulary(plain, OUTPUT, 1, COSTS, 3)


def test_forwards_alone_are_woven_too() -> None:
    plain = generate("forward-only", Request(3, 4))
    assert prove(share_vocabulary(plain, {Kind.E, Kind.S}, 1, COSTS), COSTS).peak == 1


def refused(schedule: Schedule) -> ScheduleError:
    with pytest.raises(ScheduleError) as caught:
        prove(schedule, COSTS)
    return caught.value


def test_ranks_with_different_orders_of_barriers_are_refused() -> None:
    _, shared = both("gpipe", 1, 2, 2)
    first, second = shared.order
    a, b = (second.index(Task(Kind.S, 1, index)) for index in (0, 1))
    changed = list(second)
    changed[a], changed[b] = changed[b], changed[a]
    error = refused(replace(shared, order=ordered([first, changed])))
    assert error.code == ScheduleCode.BARRIER_ORDER
    assert error.message == (
        "rank 1 has the barrier of S of microbatch 1 on rank 1 where rank 0 has that of S of microbatch 0 on rank 0"
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_without_its_part_is_refused(rank: int) -> None:
    _, shared = both("1f1b", 1, 2, 2)
    orders = [[t for t in order if t != Task(Kind.T, rank, 1)] for order in shared.order]
    error = refused(replace(shared, order=ordered(orders)))
    assert (error.code, error.message) == (
        ScheduleCode.NOT_COMPLETE,
        f"rank {rank} never runs T of microbatch 1 on rank {rank}",
    )


def test_a_part_that_is_done_twice_is_refused() -> None:
    _, shared = both("1f1b", 1, 2, 2)
    orders = [[*order, Task(Kind.T, index, 0)] for index, order in enumerate(shared.order)]
    assert "already did it" in refused(replace(shared, order=ordered(orders))).message


def test_the_gradient_before_the_barrier_is_a_deadlock_or_too_early() -> None:
    _, shared = both("gpipe", 1, 2, 1)
    orders = [sorted(order, key=lambda task: task.kind != Kind.BW) for order in shared.order]
    assert refused(replace(shared, order=ordered(orders))).code == ScheduleCode.TOO_EARLY
