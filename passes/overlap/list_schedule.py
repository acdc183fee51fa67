"""Order jobs on lanes so that collectives run beside other work: a deterministic list scheduler over plain numbers.

Jobs are issued in one order. A compute job takes time on the compute lane. A start takes none; its collective begins
once it is started and its lane is free. A wait ends when its collective does. So each order has a time, and the
scheduler looks for a shorter one:

- A start is issued when its lane is free, or will be before the next job ends: the most urgent that is ready.
- Of the jobs that can run now the most urgent runs: the one with the longest chain of jobs after it (see `Urgency`).
- A wait stands before the first job that needs its result. If nothing else can run, the first collective to end is
  waited for.
- A job that takes more memory than the cap is put off as long as another fits.

`bound` is a lower bound on the time of any order. Times are in any one unit, memory is in bytes. A job is put on a
heap at most twice, so the time grows with n log n.

Sources: Graham, "Bounds on multiprocessing timing anomalies" (1969), for list scheduling; Jackson's preemptive schedule
(Carlier, "The one-machine sequencing problem", 1982) for the bound.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import heappop, heappush

COMPUTE = "compute"
_TRIED = 8
"""How many jobs that do not fit into memory are put off for one that does."""


class Urgency(StrEnum):
    """What makes a job urgent; among equals, the one that stood first."""

    CHAIN = "chain"
    """The time of the longest chain of jobs that begins with it."""
    COLLECTIVE = "collective"
    """The same, where a collective is in the chain; else nothing, so that it fills gaps."""
    PLACE = "place"
    """Where it stood: it is passed only by what need not wait."""


@dataclass(frozen=True)
class Job:
    """One operation: `needs` are the numbers of jobs before it, all smaller than its own."""

    duration: float = 0.0
    needs: tuple[int, ...] = ()
    lane: str = COMPUTE
    """Another lane than `compute`: it starts a collective there."""
    waits: bool = False
    """Whether it waits for the collective that `needs[0]` started."""
    reads: tuple[int, ...] = ()
    makes: tuple[int, ...] = ()
    """Numbers of memories: those that it reads, and those that are allocated when it begins."""


@dataclass(frozen=True)
class Problem:
    """Jobs in an order that is possible."""

    jobs: Sequence[Job]
    sizes: Sequence[int] = ()
    """Bytes by number of a memory."""
    kept: frozenset[int] = frozenset()
    """The memories that outlive the jobs."""


@dataclass(frozen=True)
class Timeline:
    """When each job begins and ends, by its number; of a start, when its collective does."""

    begins: Sequence[float]
    ends: Sequence[float]
    total: float


def timeline(jobs: Sequence[Job], order: Sequence[int]) -> Timeline:
    """What an order takes."""
    begins, ends = [0.0] * len(jobs), [0.0] * len(jobs)
    now, free = 0.0, defaultdict[str, float](float)
    for number in order:
        job = jobs[number]
        if job.waits:
            begins[number] = now
            now = ends[number] = max(now, ends[job.needs[0]])
        elif job.lane == COMPUTE:
            begins[number] = now
            now = ends[number] = now + job.duration
        else:
            begins[number] = max(now, free[job.lane])
            free[job.lane] = ends[number] = begins[number] + job.duration
    return Timeline(begins, ends, max([now, *free.values()]))


def bound(jobs: Sequence[Job]) -> float:
    """A lower bound on the time of any order: of each lane alone, with the chains before and after its jobs."""
    heads, chains = _heads(jobs), _chains(jobs)[0]
    lanes: dict[str, list[int]] = {}
    for number, job in enumerate(jobs):
        if not job.waits and job.duration > 0:
            lanes.setdefault(job.lane, []).append(number)
    return max((_one_lane(jobs, numbers, heads, chains) for numbers in lanes.values()), default=0.0)


def _one_lane(jobs: Sequence[Job], numbers: Sequence[int], heads: Sequence[float], chains: Sequence[float]) -> float:
    """Jackson's schedule: always the ready job that most follows; jobs may be interrupted."""
    waiting = sorted(numbers, key=lambda number: heads[number])
    ready: list[list[float]] = []
    now, most, at = 0.0, 0.0, 0
    while at < len(waiting) or ready:
        if not ready:
            now = max(now, heads[waiting[at]])
        while at < len(waiting) and heads[waiting[at]] <= now:
            job = jobs[waiting[at]].duration
            heappush(ready, [job - chains[waiting[at]], job])
            at += 1
        until = heads[waiting[at]] if at < len(waiting) else float("inf")
        spent = min(ready[0][1], until - now)
        now += spent
        ready[0][1] -= spent
        if ready[0][1] <= 0 or now < until:
            most = max(most, now - heappop(ready)[0])
    return most


def _heads(jobs: Sequence[Job]) -> list[float]:
    """By job: the longest chain before it."""
    heads: list[float] = []
    for job in jobs:
        heads.append(max((heads[need] + jobs[need].duration for need in job.needs), default=0.0))
    return heads


def _chains(jobs: Sequence[Job]) -> tuple[list[float], list[bool]]:
    """By job: the longest chain that begins with it, and whether a collective is behind it."""
    chains, leads = [job.duration for job in jobs], [job.lane != COMPUTE for job in jobs]
    for number in range(len(jobs) - 1, -1, -1):
        for need in jobs[number].needs:
            chains[need] = max(chains[need], jobs[need].duration + chains[number])
            leads[need] |= leads[number]
    return chains, leads


def schedule(problem: Problem, urgency: Urgency, cap: float = float("inf")) -> list[int]:
    """An order of the jobs; where nothing fits below `cap` bytes, it exceeds them."""
    return list(_Scheduler(problem, urgency, cap).run())


@dataclass
class _Scheduler:
    problem: Problem
    urgency: Urgency
    cap: float
    now: float = 0.0
    alive: int = 0
    free: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def __post_init__(self) -> None:
        jobs = self.problem.jobs
        chains, leads = _chains(jobs)
        self._keys = [self._key(number, chains, leads) for number in range(len(jobs))]
        self._left = [len(job.needs) for job in jobs]
        self._users: list[list[int]] = [[] for _ in jobs]
        readers = [0] * len(self.problem.sizes)
        for number, job in enumerate(jobs):
            for need in job.needs:
                self._users[need].append(number)
            for memory in {*job.reads, *job.makes}:
                readers[memory] += 1
        self._readers = readers
        self._ends = [0.0] * len(jobs)
        self._available = [0.0] * len(jobs)
        self._put_off: dict[int, None] = {}
        """Waits that may stand from here on, in the order in which they may."""
        self._ready: list[tuple[float, int]] = []
        self._later: list[tuple[float, float, int]] = []
        self._starts: dict[str, list[tuple[float, int]]] = {}

    def _key(self, number: int, chains: Sequence[float], leads: Sequence[bool]) -> float:
        match self.urgency:
            case Urgency.CHAIN:
                return -chains[number]
            case Urgency.COLLECTIVE:
                return -chains[number] if leads[number] else 0.0
            case Urgency.PLACE:
                return float(number)

    def run(self) -> Iterator[int]:
        """The numbers of the jobs in their order."""
        for number in [number for number, left in enumerate(self._left) if not left]:
            self._make_ready(number)
        while self._ready or self._later or any(self._starts.values()):
            while self._later and self._later[0][0] <= self.now:
                _, key, number = heappop(self._later)
                self._queue(key, number)
            if self._ready:
                number = self._chosen()
                started = self._start_before(self.now + self.problem.jobs[number].duration)
                for start in started:
                    yield from self._issue(start)
                if started:  # these may have made something more urgent ready, or filled the memory
                    heappush(self._ready, (self._keys[number], number))
                else:
                    yield from self._issue(number)
            elif started := self._start_before(float("inf")):
                for start in started:
                    yield from self._issue(start)
            else:
                self.now = self._later[0][0]
        for number in sorted(self._put_off, key=lambda wait: (self._ends[self.problem.jobs[wait].needs[0]], wait)):
            yield number

    def _queue(self, key: float, number: int) -> None:
        lane = self.problem.jobs[number].lane
        heappush(self._ready if lane == COMPUTE else self._starts.setdefault(lane, []), (key, number))

    def _start_before(self, time: float) -> list[int]:
        """Of each lane that is free before a time, the most urgent start, unless it takes too much memory."""
        chosen = []
        for lane, ready in self._starts.items():
            if ready and self.free[lane] < time and (self._fits(ready[0][1]) or not self._ready):
                chosen.append(heappop(ready)[1])
        return chosen

    def _chosen(self) -> int:
        """The most urgent job that fits, else the one that stood first."""
        tried: list[tuple[float, int]] = []
        while self._ready and len(tried) < _TRIED:
            tried.append(heappop(self._ready))
            if self._fits(tried[-1][1]):
                break
        fits = self._fits(tried[-1][1])
        taken = tried[-1] if fits else min(tried, key=lambda entry: entry[1])
        for entry in tried:
            if entry is not taken:
                heappush(self._ready, entry)
        return taken[1]

    def _fits(self, number: int) -> bool:
        sizes = self.problem.sizes
        return self.alive + sum(sizes[memory] for memory in self.problem.jobs[number].makes) <= self.cap

    def _issue(self, number: int) -> Iterator[int]:
        """A job behind the waits that it needs."""
        jobs = self.problem.jobs
        for need in jobs[number].needs:
            if need in self._put_off:
                yield from self._wait(need)
        if not self._fits(number):
            for wait in [wait for wait in self._put_off if self._ends[jobs[wait].needs[0]] <= self.now]:
                yield from self._wait(wait)  # what the collective took is free
        job = jobs[number]
        self._take(job)
        if job.lane == COMPUTE:
            self.now = self._ends[number] = self.now + job.duration
        else:
            self.free[job.lane] = self._ends[number] = max(self.now, self.free[job.lane]) + job.duration
        yield number
        self._done(number)

    def _wait(self, number: int) -> Iterator[int]:
        job = self.problem.jobs[number]
        del self._put_off[number]
        self.now = max(self.now, self._ends[job.needs[0]])
        self._take(job)
        yield number

    def _take(self, job: Job) -> None:
        sizes = self.problem.sizes
        self.alive += sum(sizes[memory] for memory in job.makes)
        for memory in {*job.reads, *job.makes}:
            self._readers[memory] -= 1
            if not self._readers[memory] and memory not in self.problem.kept:
                self.alive -= sizes[memory]

    def _done(self, number: int) -> None:
        """What needs only this job yet is ready; a wait is put off until something needs it."""
        for user in self._users[number]:
            self._left[user] -= 1
            if not self._left[user]:
                self._make_ready(user)

    def _make_ready(self, number: int) -> None:
        jobs = self.problem.jobs
        job = jobs[number]
        if job.waits:
            self._put_off[number] = None
            self._done(number)
            return
        waits = [self._ends[jobs[need].needs[0]] for need in job.needs if jobs[need].waits]
        available = max(waits, default=0.0)
        if available > self.now:
            heappush(self._later, (available, self._keys[number], number))
        else:
            self._queue(self._keys[number], number)
