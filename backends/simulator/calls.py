"""What a call of a function does to the clocks of its rank, so that an equal call need not be walked again.

All that a call does follows from how far its clocks are ahead of the compute lane: a lane or a future that is behind it
delays nothing, and neither does a thread that is further behind than the call issues.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...runtime.lanes.timeline import Task
from .kernels import Kind

DIGITS = 12
"""Clocks that agree to a picosecond are as far apart: sums of equal times differ in their last digits."""


@dataclass
class Spent:
    """What one rank's step took, in seconds."""

    computed: defaultdict[Kind, float] = field(default_factory=lambda: defaultdict(float))
    """Time of kernels."""
    waited: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Time in which the compute lane waited for a collective, by its axes, or for another stage."""
    communicated: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Time of collectives by their axes, hidden or not."""
    issuing: float = 0.0
    """Time in which the compute lane had nothing, because the thread had not issued the next kernel yet."""
    at_peak: float = 0.0
    """What all products would take at the peaks of their formats."""
    end: float = 0.0

    def add(self, other: Spent) -> None:
        """Add what a call took; the end stays."""
        for own, more in (
            (self.computed, other.computed), (self.waited, other.waited), (self.communicated, other.communicated),
        ):  # fmt: skip
            for key, seconds in more.items():
                own[key] += seconds  # type: ignore[index]
        self.issuing += other.issuing
        self.at_peak += other.at_peak


Futures = Mapping[int, tuple[float, str]]
"""By slot: when what it holds is there, and whose wait that is."""


@dataclass(frozen=True)
class Clocks:
    """The clocks of a rank, in seconds from the start of the step."""

    thread: float
    compute: float
    lanes: Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """What a call did; times count from the compute lane's clock at its start, that of the thread from its own."""

    thread: float
    compute: float
    lanes: Mapping[str, float]
    """The lanes whose clocks moved."""
    futures: Futures
    spent: Spent
    tasks: Sequence[Task]


def key_of(name: str, clocks: Clocks, futures: Futures, issuing: float) -> object:
    """What the outcome of a call depends on; `issuing` is what the thread takes to issue all of it (seconds)."""

    def ahead(clock: float) -> float:
        return max(round(clock - clocks.compute, DIGITS), 0.0)

    thread = round(clocks.thread - clocks.compute, DIGITS)
    return (
        name,
        thread if thread + issuing > 0 else None,
        frozenset((lane, ahead(clock)) for lane, clock in clocks.lanes.items() if ahead(clock)),
        frozenset((slot, ahead(ready), whose) for slot, (ready, whose) in futures.items()),
    )


def outcome_of(before: Clocks, after: Clocks, futures: Futures, spent: Spent, tasks: Sequence[Task]) -> Outcome:
    """The outcome of a call that was walked; `futures` are those that its slots hold at its end."""
    origin = before.compute
    return Outcome(
        after.thread - before.thread,
        after.compute - origin,
        {lane: end - origin for lane, end in after.lanes.items() if before.lanes.get(lane) != end},
        {slot: (ready - origin, whose) for slot, (ready, whose) in futures.items()},
        spent,
        tuple(task.later(-origin) for task in tasks),
    )
