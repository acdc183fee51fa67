"""The list scheduler against the best of all orders, against a bound, and by the steps that it takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import pytest
from stretto.passes.overlap import list_schedule
from stretto.passes.overlap.list_schedule import COMPUTE, Job, Problem, Urgency, bound, schedule, timeline


def _best(jobs: Sequence[Job]) -> float:
    """The least time of all orders, by trying them: a state is what ran, and the clocks of all lanes."""
    numbers = range(len(jobs))
    states: dict[frozenset[int], set[tuple[float, tuple[tuple[int, float], ...]]]] = {frozenset(): {(0.0, ())}}
    for _ in numbers:
        following: dict[frozenset[int], set[tuple[float, tuple[tuple[int, float], ...]]]] = {}
        for ran, clocks in states.items():
            for number in numbers:
                if number not in ran and ran.issuperset(jobs[number].needs):
                    made = following.setdefault(ran | {number}, set())
                    made.update(_after(jobs, number, now, ends) for now, ends in clocks)
        states = {ran: set(_least(clocks)) for ran, clocks in following.items()}
    return min(max([now, *(end for _, end in ends)]) for clocks in states.values() for now, ends in clocks)


def _after(
    jobs: Sequence[Job], number: int, now: float, ends: tuple[tuple[int, float], ...]
) -> tuple[float, tuple[tuple[int, float], ...]]:
    job, known = jobs[number], dict(ends)
    if job.waits:
        return max(now, known[job.needs[0]]), ends
    if job.lane == COMPUTE:
        return now + job.duration, ends
    free = max((end for start, end in ends if jobs[start].lane == job.lane), default=0.0)
    return now, tuple(sorted({**known, number: max(now, free) + job.duration}.items()))


def _least(
    clocks: set[tuple[float, tuple[tuple[int, float], ...]]],
) -> Iterator[tuple[float, tuple[tuple[int, float], ...]]]:
    """Without those that others beat on every clock."""
    kept: list[tuple[float, tuple[tuple[int, float], ...]]] = []
    for now, ends in sorted(clocks):
        if not any(b <= now and all(x <= y for (_, x), (_, y) in zip(e, ends, strict=True)) for b, e in kept):
            kept.append((now, ends))
    yield from kept


def _collective(jobs: list[Job], duration: float, *needs: int, lane: str = "tp") -> int:
    """Add a start and its wait; the number of the wait."""
    jobs.append(Job(duration, needs, lane))
    jobs.append(Job(0.0, (len(jobs) - 1,), waits=True))
    return len(jobs) - 1


def _compute(jobs: list[Job], duration: float, *needs: int) -> int:
    jobs.append(Job(duration, needs))
    return len(jobs) - 1


def _tensor_parallel_backward(batches: int) -> list[Job]:
    """Of each nanobatch: input gradients in a chain with two sums, a weight gradient beside each."""
    jobs: list[Job] = []
    for _ in range(batches):
        given: tuple[int, ...] = ()
        for inputs, weights, sums in ((4.0, 4.0, 3.0), (3.0, 3.0, 3.0)):
            gradient = _compute(jobs, inputs, *given)
            given = (_collective(jobs, sums, gradient),)
            _compute(jobs, weights, gradient)
    return jobs


def _tensor_parallel_forward(batches: int) -> list[Job]:
    jobs: list[Job] = []
    for _ in range(batches):
        given: tuple[int, ...] = ()
        for products, sums in ((3.0, 2.0), (5.0, 2.0)):
            given = (_compute(jobs, 0.5, _collective(jobs, sums, _compute(jobs, products, *given))),)
    return jobs


def _experts(batches: int) -> list[Job]:
    """Attention, rows to their experts, their products, and back; shared experts beside."""
    jobs: list[Job] = []
    for _ in range(batches):
        attention = _compute(jobs, 3.0)
        there = _collective(jobs, 2.5, attention, lane="ep")
        shared = _compute(jobs, 1.0, attention)
        back = _collective(jobs, 2.5, _compute(jobs, 4.0, there), lane="ep")
        _compute(jobs, 0.5, back, shared)
    return jobs


def _sharded_parameters(layers: int) -> list[Job]:
    """Each layer gathers its parameters, and reduces their gradients over another lane's group."""
    jobs: list[Job] = []
    given: tuple[int, ...] = ()
    for _ in range(layers):
        given = (_compute(jobs, 3.0, _collective(jobs, 2.0, lane="dp"), *given),)
        _collective(jobs, 1.5, given[0], lane="tp")
    return jobs


def _scheduled(jobs: list[Job]) -> float:
    return min(timeline(jobs, schedule(Problem(jobs), urgency)).total for urgency in Urgency)


@pytest.mark.parametrize(
    "jobs",
    [
        _tensor_parallel_backward(1), _tensor_parallel_backward(2), _tensor_parallel_forward(2), _experts(1),
        _experts(2), _sharded_parameters(3),
    ],
    ids=["backward", "backward, 2 nanobatches", "forward, 2", "experts", "experts, 2", "sharded parameters"],
)  # fmt: skip
def test_repeating_bodies_are_within_5_percent_of_the_best_order(jobs: list[Job]) -> None:
    best = _best(jobs)
    assert bound(jobs) <= best <= _scheduled(jobs) <= 1.05 * best


def test_four_nanobatches_are_within_5_percent_of_a_bound() -> None:
    for body in (_tensor_parallel_backward(4), _tensor_parallel_forward(4), _experts(4)):
        assert _scheduled(body) <= 1.05 * bound(body)


def _random_jobs(random: Random, count: int) -> list[Job]:
    jobs: list[Job] = []
    for _ in range(count):
        ends = [number for number, job in enumerate(jobs) if job.waits or job.lane == COMPUTE]
        needs = sorted(random.sample(ends, min(len(ends), random.choice((0, 1, 1, 2)))))
        if random.random() < 0.35:
            _collective(jobs, random.randint(1, 6), *needs, lane=random.choice(("tp", "dp")))
        else:
            _compute(jobs, random.randint(1, 6), *needs)
    return jobs


def test_random_jobs_keep_what_they_need_and_no_order_beats_the_bound() -> None:
    random, over = Random(3), []
    for _ in range(40):
        jobs = _random_jobs(random, random.randint(2, 7))
        for urgency in Urgency:
            order = schedule(Problem(jobs), urgency)
            place = {number: at for at, number in enumerate(order)}
            assert sorted(order) == list(range(len(jobs))) and order == schedule(Problem(jobs), urgency)
            assert all(place[need] < place[number] for number, job in enumerate(jobs) for need in job.needs)
        best = _best(jobs)
        assert bound(jobs) <= best <= _scheduled(jobs)
        over.append(_scheduled(jobs) / best)
    assert sum(over) / len(over) < 1.03


def _sized(jobs: list[Job]) -> Problem:
    """Each job but a wait makes 1 byte; a wait keeps what the collective read until then."""
    sized = []
    for number, job in enumerate(jobs):
        reads = jobs[job.needs[0]].needs if job.waits else ()
        inputs = tuple(jobs[need].needs[0] if jobs[need].waits else need for need in job.needs)
        sized.append(
            Job(job.duration, job.needs, job.lane, job.waits, (*reads, *inputs), () if job.waits else (number,))
        )
    return Problem(sized, [1] * len(jobs))


def _peak(problem: Problem, order: Sequence[int]) -> int:
    last = {
        m: at for at, number in enumerate(order) for m in (*problem.jobs[number].reads, *problem.jobs[number].makes)
    }
    alive, most = set[int](), 0
    for at, number in enumerate(order):
        alive.update(problem.jobs[number].makes)
        most = max(most, len(alive))
        alive = {memory for memory in alive if last[memory] > at}
    return most


def test_a_cap_is_kept_where_some_job_fits_below_it() -> None:
    problem = _sized(_tensor_parallel_forward(4))
    free = schedule(problem, Urgency.CHAIN)
    capped = schedule(problem, Urgency.CHAIN, _peak(problem, free) - 1)
    assert _peak(problem, capped) < _peak(problem, free)
    assert timeline(problem.jobs, capped).total < timeline(problem.jobs, range(len(problem.jobs))).total


def test_steps_grow_with_the_number_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    pushes, heappush = 0, list_schedule.heappush

    def counted(heap: list[object], item: object) -> None:
        nonlocal pushes
        pushes += 1
        heappush(heap, item)

    monkeypatch.setattr(list_schedule, "heappush", counted)
    for batches in (8, 64):
        jobs, pushes = _tensor_parallel_backward(batches), 0
        schedule(Problem(jobs), Urgency.CHAIN)
        assert pushes <= 3 * len(jobs)
