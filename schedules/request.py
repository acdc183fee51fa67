"""What is asked of a generator, and the choice among several schedules that answer it."""

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
"""A bubble below this is none."""
_LARGE = 20_000
"""Above so many tasks, a choice is made on fewer microbatches."""


@dataclass(frozen=True)
class Request:
    """The numbers of a schedule. Raises ScheduleError E0441 where one is below 1."""

    ranks: int
    microbatches: int
    chunks: int | None = None
    """Virtual stages of a rank; None: as many as the schedule is usually given."""
    costs: Costs = field(default_factory=Costs)
    cap: float | None = None
    """The most activations of a rank, in those of one microbatch on all that it holds; None: as published."""
    tries: int = 0
    """How many moves `local_search.improve` may try."""
    measure: Measure | None = None
    """By what the best is chosen; None: as the schedule's source does."""

    def __post_init__(self) -> None:
        numbers = {"stages": self.ranks, "microbatches": self.microbatches, "chunks": self.chunks, "tries": self.tries}
        for name, number in numbers.items():
            least = 0 if name == "tries" else 1
            if number is not None and number < least:
                message = f"a schedule cannot have {number} {name}"
                raise ScheduleError(ScheduleCode.NOT_DEFINED, message, expected=f"expected at least {least}")

    @property
    def limit(self) -> float:
        """The cap, infinite where there is none."""
        return inf if self.cap is None else self.cap

    @property
    def is_large(self) -> bool:
        """Whether trying many schedules of this size takes long."""
        return 3 * self.ranks * self.microbatches * (self.chunks or 1) > _LARGE

    def shorter(self) -> Request:
        """The same with so few microbatches that many schedules can be tried, but enough for a steady part."""
        return replace(self, microbatches=min(self.microbatches, 2 * self.ranks)) if self.is_large else self


def not_defined(name: str, needs: str, found: str, help: str = "") -> ScheduleError:
    """The error of a schedule that is not defined for some numbers."""
    return ScheduleError(ScheduleCode.NOT_DEFINED, f'"{name}" needs {needs}, not {found}', help=help)


def ranked(
    candidates: Iterable[Schedule | None], costs: Costs, cap: float, measure: Measure
) -> list[tuple[Schedule, Figures]]:
    """Those that can run within the cap, the best first; of those with equal figures the first alone.

    Nothing is tried after one without a bubble.
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
