"""Errors of schedules: not defined for the given numbers, or unable to run."""

from __future__ import annotations

from enum import StrEnum

from ..diagnostics import StrettoError


class ScheduleCode(StrEnum):
    """The error codes of schedules; `docs/errors.md` has a line for each."""

    UNKNOWN_SCHEDULE = "E0440"
    NOT_DEFINED = "E0441"
    BAD_COSTS = "E0442"
    DEADLOCK = "E0720"
    TOO_EARLY = "E0721"
    OVER_CAP = "E0722"
    NO_SUCH_TASK = "E0723"
    NOT_COMPLETE = "E0724"
    BARRIER_ORDER = "E0725"


class ScheduleError(StrettoError):
    """A schedule that does not exist, or cannot run; `code` is one of `ScheduleCode`."""
