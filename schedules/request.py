"""The input of a generator, and the ranking of candidate schedules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import inf

from .costs import Costs
from .error import ScheduleCode, ScheduleError
from .figures import Figures, Measure
from .prove import prove
from .schedule import Schedule

_NONE = 1e-9
"""A bubble below this counts as none."""
MOST_FORWARDS = 1 << 17
"""The most forwards of all stages: 64 stages of 2048 microbatches. Their schedule takes seconds to prove."""
_MOST = 1_000_000
"""The most of any one number."""
_LARGE = 20_000
"""Above this number of tasks, candidates are compared on fewer microbatches."""


@dataclass(frozen=True)
class Request:
    """The numbers of a schedule to make. Raises ScheduleError E0441 for a number out of its range."""

    ranks: int
    microbatches: int
    chunks: int | None = None
    """Virtual stages per rank; None: the schedule's default."""
    costs: Costs = field(default_factory=Costs)
    cap: float | None = None
    """The most activations of a rank, in those of one microbatch on all of its stages; None: as published."""
    tries: int = 0
    """The number of moves of `local_search.improve`."""
    measure: Measure | None = None
    """The measure to optimise; None: that of the schedule's source."""

    def __post_init__(self) -> None:
        numbers = {"stages": self.ranks, "microbatches": self.microbatches, "chunks": self.chunks, "tries": self.tries}
        for name, number in numbers.items():
            least = 0 if name == "tries" else 1
            if number is not None and number < least:
                message = f"a schedule cannot have {number} {name}"
                raise ScheduleError(ScheduleCode.NOT_DEFINED, message, expected=f"expected at least {least}")
            if number is not None and number > _MOST:
                message = f"a schedule cannot have {shortened(number)} {name}"
                raise ScheduleError(ScheduleCode.NOT_DEFINED, message, expected=f"expected at most {_MOST}")
        forwards = self.ranks * self.microbatches * (self.chunks or 1)
        if forwards > MOST_FORWARDS:
            message = f"a schedule of {forwards} forwards (stages x microbatches x chunks) is too large"
            raise ScheduleError(ScheduleCode.NOT_DEFINED, message, expected=f"expected at most {MOST_FORWARDS}")

    @property
    def limit(self) -> float:
        """The cap, infinite if there is none."""
        return inf if self.cap is None else self.cap

    @property
    def is_large(self) -> bool:
        """Whether it would take long to try many schedules of this size."""
        return 3 * self.ranks * self.microbatches * (self.chunks or 1) > _LARGE

    def shorter(self) -> Request:
        """The request with few microbatches (at most 2 p, enough for a steady part) if it is large."""
        return replace(self, microbatches=min(self.microbatches, 2 * self.ranks)) if self.is_large else self


def shortened(number: int) -> str:
    """A number for a message, in at most 30 digits."""
    return str(number) if number < 10**30 else "more than 10^30"


def not_defined(name: str, needs: str, found: str, help: str = "") -> ScheduleError:
    """The error for a schedule that does not support the request's numbers."""
    return ScheduleError(ScheduleCode.NOT_DEFINED, f'"{name}" needs {needs}, not {found}', help=help)


def rank_candidates(
    candidates: Iterable[Schedule | None], costs: Costs, cap: float, measure: Measure
) -> list[tuple[Schedule, Figures]]:
    """The candidates that can run within the cap, best first; of equal figures only the first.

    The search ends at the first one without a bubble.
    """
    by_measure: dict[tuple[float, float], tuple[Schedule, Figures]] = {}
    for schedule in candidates:
        if schedule is None:
            continue
        try:
            figures = prove(schedule, costs, cap)
        except ScheduleError:
            continue
        by_measure.setdefault(figures.by(measure), (schedule, figures))
        if figures.bubble(measure) < _NONE:
            break
    return [by_measure[time] for time in sorted(by_measure)]
