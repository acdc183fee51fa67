"""Whatever is generated can run: by the prover, and by a check that shares nothing with it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from stretto.schedules import (
    Costs,
    Kind,
    Request,
    Schedule,
    ScheduleError,
    Task,
    Timeline,
    generate,
    names,
    prove,
    simulate,
    v_placement,
)
from stretto.schedules.generators.list_scheduler import First, Policy, list_schedule
from stretto.schedules.generators.local_search import improve

times = st.sampled_from([0.0, 0.3, 1.0, 1.7])
costs = st.builds(Costs, st.sampled_from([0.5, 1.0, 2.0]), times, times, times, kept=st.sampled_from([0.0, 0.5, 1.0]))


def check(schedule: Schedule, costs: Costs, timeline: Timeline) -> None:
    """Every task once, on its rank, one at a time, not before what it reads is there."""
    ends: dict[Task, float] = {}
    for rank, order in enumerate(schedule.order):
        before = 0.0
        for task, start, end in zip(order, timeline.starts[rank], timeline.ends[rank], strict=True):
            overlapped = task.kind == Kind.BW and start < before
            assert start >= before - 1e-9 or overlapped
            before = max(before, end)
            parts = (Kind.B, Kind.W) if task.kind == Kind.BW else (task.kind,)
            for kind in parts:
                part = task._replace(kind=kind)
                assert part not in ends
                ends[part] = end
    kinds = (Kind.F, Kind.B, Kind.W) if schedule.has_backward else (Kind.F,)
    assert len(ends) == len(kinds) * schedule.stages * schedule.microbatches
    for rank, order in enumerate(schedule.order):
        for task, start in zip(order, timeline.starts[rank], strict=True):
            assert schedule.placement[task.stage] == rank
            for end in arrivals(task, schedule, costs, ends):
                assert start >= end - 1e-9, task


def arrivals(task: Task, schedule: Schedule, costs: Costs, ends: dict[Task, float]) -> list[float]:
    """When what a task reads is on its rank."""
    kind, stage, microbatch = task
    if kind == Kind.W:
        return [ends[Task(Kind.B, stage, microbatch)]]
    actual = [] if kind == Kind.F else [ends[Task(Kind.F, stage, microbatch)]]
    other = stage - 1 if kind == Kind.F else stage + 1
    if 0 <= other < schedule.stages:
        moved = schedule.placement[other] != schedule.placement[stage]
        source = Task(Kind.F if kind == Kind.F else Kind.B, other, microbatch)
        actual.append(ends[source] + costs.c * moved)
    return actual


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([name for name in names() if name != "auto"]),
    ranks=st.integers(1, 6), microbatches=st.integers(1, 14), costs=costs,
    cap=st.one_of(st.none(), st.sampled_from([1.0, 1.5, 2.0, 3.0, 5.0])),
)  # fmt: skip
def test_every_generated_schedule_can_run(
    name: str, ranks: int, microbatches: int, costs: Costs, cap: float | None
) -> None:
    try:
        schedule = generate(name, Request(ranks, microbatches, costs=costs, cap=cap))
    except ScheduleError as error:
        assert cap is not None or name == "dualpipe-v", error
        return
    prove(schedule, costs, cap if name in ("zb-auto", "zb-v", "v-half", "v-min") else None)
    check(schedule, costs, simulate(schedule, costs))


@settings(max_examples=30, deadline=None)
@given(ranks=st.integers(1, 5), chunks=st.integers(1, 4), microbatches=st.integers(1, 12))
def test_interleaved_is_defined_for_any_number_of_microbatches(ranks: int, chunks: int, microbatches: int) -> None:
    schedule = generate("interleaved", Request(ranks, microbatches, chunks))
    prove(schedule)
    check(schedule, Costs(), simulate(schedule, Costs()))


@settings(max_examples=60, deadline=None)
@given(
    ranks=st.integers(1, 5), microbatches=st.integers(1, 10), costs=costs,
    cap=st.sampled_from([1.0, 1.5, 2.0, 4.0]), folded=st.booleans(),
    policy=st.builds(
        Policy, st.sampled_from(First), st.booleans(), st.booleans(), st.sampled_from([0.0, 0.5, 1.0]),
        st.sampled_from([0.0, 0.5, 1.0]), st.booleans(),
    ),
)  # fmt: skip
def test_the_list_scheduler_keeps_within_any_cap_and_never_hangs(
    ranks: int, microbatches: int, costs: Costs, cap: float, folded: bool, policy: Policy
) -> None:
    placement = v_placement(ranks) if folded else tuple(range(ranks))
    schedule = list_schedule("listed", placement, microbatches, costs, cap, policy)
    prove(schedule, costs, cap)
    check(schedule, costs, simulate(schedule, costs))


@settings(max_examples=20, deadline=None)
@given(ranks=st.integers(2, 4), microbatches=st.integers(2, 8), costs=costs)
def test_a_local_search_never_makes_a_schedule_worse(ranks: int, microbatches: int, costs: Costs) -> None:
    schedule = generate("zb-h1", Request(ranks, microbatches))
    before = prove(schedule, costs)
    actual = improve(schedule, costs, before.peak, 30)
    after = prove(actual, costs, before.peak)
    assert after.longest_span <= before.longest_span + 1e-9
