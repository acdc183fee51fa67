"""How long tasks take, and what activations they hold."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from .error import ScheduleCode, ScheduleError


@dataclass(frozen=True)
class Costs:
    """Times of one microbatch on all that a rank holds, in one unit of time for all; a chunk takes its share of them.

    Raises ScheduleError E0442 for a time that is negative, infinite or no number, and where nothing takes time.
    """

    f: float = 1.0
    """The forward."""
    b: float = 1.0
    """The gradient of the input."""
    w: float = 1.0
    """The gradient of the weights."""
    c: float = 0.0
    """From the end of a task on one rank until what it sent is there on another; not divided by chunks."""
    fb: float | None = None
    """A forward and the full backward of another microbatch, overlapped; None: as long as one after the other."""
    kept: float = 1.0
    """The share of a microbatch's activations that stays alive from B until W (0 to 1)."""
    s: float = 0.25
    """A rank's part of the output's work, where all ranks share the vocabulary, up to where they meet."""
    t: float = 0.25
    """What it has left to do of it then."""
    e: float = 0.0
    """A rank's part of looking up embeddings."""
    g: float = 0.0
    """A rank's part of their gradient."""

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
            message = f"W keeps {self.kept:g} of the activations"
            raise ScheduleError(ScheduleCode.BAD_COSTS, message, expected="expected a share from 0 to 1")
        if self.f + self.b + self.w <= 0:
            message = "no task takes any time"
            raise ScheduleError(ScheduleCode.BAD_COSTS, message, help="give at least one of f, b and w")

    @property
    def whole(self) -> float:
        """One microbatch's forward and backward on one rank."""
        return self.f + self.b + self.w

    def pair(self, chunks: int) -> float:
        """The time of an overlapped forward and full backward on one of a rank's chunks."""
        return (self.whole if self.fb is None else self.fb) / chunks

    def durations(self, chunks: int) -> tuple[float, ...]:
        """The time of a task of each `Kind`, by the kind's number; of a stage's on one of a rank's chunks."""
        of_stages = self.f / chunks, self.b / chunks, self.w / chunks, (self.b + self.w) / chunks
        return *of_stages, self.s, self.t, self.e, self.g
