"""The calls of one process that all processes must make alike: what a failure is diagnosed from.

A call is what a user calls: a forward, a backward, a checkpoint, a clipping. Its record stays in this process until a
heartbeat or a report takes it to the store, so that a step that goes well costs no message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

Describe = Callable[[], Mapping[str, str]]
"""Makes the details of a call in words, such as {"mode": "train"}; called only for a failure or a heartbeat."""
RECENT = 8
"""Calls that a log keeps: ranks notice that they differ a call or two after they do."""


@dataclass
class Call:
    """One call. Only calls that communicate are counted, so that processes with equal counts meet in the same call."""

    what: str
    describe: Describe
    number: int
    """How many calls have communicated before it."""
    attempt: int
    """How many calls of this number have failed before they communicated."""
    communicates: bool = False
    is_agreed: bool = True
    """Whether all processes know the same since it communicated last: an error that follows is raised by all."""
    notes: dict[str, str] = field(default_factory=dict)
    """Details that became known inside the call, such as the hash of the program."""

    @property
    def position(self) -> str:
        """The number and the attempt: equal on processes that wait for each other."""
        return f"{self.number}.{self.attempt}"

    def record(self) -> CallRecord:
        """The call as other processes see it."""
        return CallRecord(self.number, self.what, {**self.describe(), **self.notes})


@dataclass(frozen=True)
class CallRecord:
    """A call in words."""

    number: int
    what: str
    details: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"call {self.number + 1} ({self.what})"


@dataclass(frozen=True)
class LogRecord:
    """What a process did last, as other processes see it."""

    calls: tuple[CallRecord, ...] = ()
    """Its last calls that communicated, then the open one."""
    is_open: bool = False
    """Whether it is inside the last of them."""
    has_ended: bool = False
    """Whether it left in good order."""

    def to_json(self) -> dict[str, object]:
        """The log as JSON values."""
        calls = [[each.number, each.what, dict(each.details)] for each in self.calls]
        return {"calls": calls, "open": self.is_open, "ended": self.has_ended}

    @staticmethod
    def of_json(value: object) -> LogRecord:
        """The inverse of `to_json`; an empty log for what is none."""
        match value:
            case {"calls": list(calls), "open": bool(is_open), "ended": bool(ended)}:
                records = tuple(CallRecord(number, what, details) for number, what, details in calls)
                return LogRecord(records, is_open, ended)
            case _:
                return LogRecord()


def no_details() -> Mapping[str, str]:
    """The details of a call that has none."""
    return {}


class CallLog:
    """The calls of this process."""

    def __init__(self) -> None:
        self._recent: tuple[Call, ...] = ()
        """Replaced, not changed: the thread of the heartbeats reads it."""
        self._open: Call | None = None
        self._number = 0
        self._attempt = 0
        self._has_ended = False

    @contextmanager
    def call(self, what: str, describe: Describe = no_details) -> Iterator[Call]:
        """A context in which a call is open. A call inside another one is a part of it."""
        if self._open is not None:
            yield self._open
            return
        self._open = call = Call(what, describe, self._number, self._attempt)
        failed = True
        try:
            yield call
            failed = False
        finally:
            self._open = None
            if call.communicates:
                self._recent = (*self._recent[1 - RECENT :], call)
                self._number, self._attempt = self._number + 1, 0
            elif failed:
                self._attempt += 1

    def communicate(self) -> None:
        """Note that the open call communicates."""
        if self._open is not None:
            self._open.communicates, self._open.is_agreed = True, False

    def agree(self) -> None:
        """Note that what the open call communicated last is known to all processes alike."""
        if self._open is not None:
            self._open.is_agreed = True

    def note(self, **details: str) -> None:
        """Add details to the open call."""
        if self._open is not None:
            self._open.notes.update(details)

    @property
    def is_open(self) -> bool:
        """Whether a call is open."""
        return self._open is not None

    @property
    def position(self) -> str:
        """The position of the open call, else of the next one."""
        return f"{self._number}.{self._attempt}" if self._open is None else self._open.position

    def end(self) -> None:
        """Note that this process leaves in good order."""
        self._has_ended = True

    def record(self) -> LogRecord:
        """The log as other processes see it."""
        calls = self._recent if self._open is None else (*self._recent, self._open)
        return LogRecord(tuple(call.record() for call in calls), self._open is not None, self._has_ended)
