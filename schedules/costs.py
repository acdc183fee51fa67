"""The costs of tasks: times, and the share of activations that W keeps alive."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from .error import ScheduleCode, ScheduleError

_LONGEST = 1e200
"""The largest sum of times: the makespan of many microbatches stays a finite number."""


@dataclass(frozen=True)
class Costs:
    """Times of one microbatch on all stages of a rank, in one unit; a chunk takes 1 / chunks of them.

    Raises ScheduleError E0442 for a time that is negative or not finite, and if f, b and w are all 0.
    """

    f: float = 1.0
    """The forward."""
    b: float = 1.0
    """The input gradient."""
    w: float = 1.0
    """The weight gradient."""
    c: float = 0.0
    """The time of a transfer between ranks; not divided by chunks."""
    fb: float | None = None
    """A forward overlapped with the full backward of another microbatch; None: f + b + w."""
    kept: float = 1.0
    """The share of a microbatch's activations that W reads, so that they stay alive after B (0 to 1)."""
    s: float = 0.25
    """S: a rank's part of the output layer before the barrier, with a sharded vocabulary."""
    t: float = 0.25
    """T: a rank's part of the output layer after the barrier."""
    e: float = 0.0
    """E: a rank's part of the embedding lookup."""
    g: float = 0.0
    """G: a rank's part of the embedding's gradient."""

    def __post_init__(self) -> None:
        times = {"f": self.f, "b": self.b, "w": self.w, "c": self.c}
        times |= {"s": self.s, "t": self.t, "e": self.e, "g": self.g}
        if self.fb is not None:
            times["fb"] = self.fb
        for name, time in times.items():
            if not (isfinite(time) and time >= 0):
                message = f"the time {name} is {time:g}"
                raise ScheduleError(ScheduleCode.BAD_COSTS, message, expected="expected a number of at least 0")
        if not 0 <= self.kept <= 1:
            message = f"the share of activations that W keeps is {self.kept:g}"
            raise ScheduleError(ScheduleCode.BAD_COSTS, message, expected="expected a share from 0 to 1")
        if sum(times.values()) > _LONGEST:
            message = f"the times f, b, w and c are {', '.join(f'{time:g}' for time in list(times.values())[:4])}"
            expected = f"expected times whose sum is at most {_LONGEST:g}"
            raise ScheduleError(ScheduleCode.BAD_COSTS, message, expected=expected, help="give them in a larger unit")
        if self.f + self.b + self.w <= 0:
            message = "the times f, b and w are all 0"
            raise ScheduleError(ScheduleCode.BAD_COSTS, message, help="make at least one of them positive")

    @property
    def whole(self) -> float:
        """f + b + w: one microbatch's forward and backward on a rank."""
        return self.f + self.b + self.w

    def pair(self, chunks: int) -> float:
        """The time of an overlapped forward and full backward on one chunk."""
        return (self.whole if self.fb is None else self.fb) / chunks

    def durations(self, chunks: int) -> tuple[float, ...]:
        """The time of a task of each `Kind`, indexed by the kind; F, B, W and BW on one chunk."""
        of_stages = self.f / chunks, self.b / chunks, self.w / chunks, (self.b + self.w) / chunks
        return *of_stages, self.s, self.t, self.e, self.g
