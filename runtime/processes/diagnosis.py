"""The words of a failure among rank processes: which rank is dead, failed, late or differs, and what it did last.

It names no rank as "this one": the rank that makes it writes it to the store, and all ranks raise the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ..errors import rank_list
from .calls import CallRecord, LogRecord

_SHOWN = 8
_HELP = "set STRETTO_TIMEOUT_S (seconds) higher where a rank may be late for longer, as when it writes a checkpoint"
_DIFFERENT_HELP = (
    "every rank must make the same calls with the same arguments and in the same state of the model; "
    "keep what differs by rank, such as printing, out of them"
)


class StopReason(StrEnum):
    """Why a process stopped."""

    FAILED = "failed"
    """An error of its own, in `Report.error`."""
    RAISED = "raised"
    """An error of its own before it communicated: it may go on, but not those that wait for it."""
    LOST = "lost"
    """A broken connection."""
    TIMEOUT = "timeout"
    """Other members of a collective were late."""
    PEER_STOPPED = "peer stopped"
    """Another process had stopped."""


@dataclass(frozen=True)
class Report:
    """The report that a process writes to the store when it stops."""

    reason: str
    where: str
    error: str = ""
    log: Mapping[str, object] = field(default_factory=dict)
    """Its last calls, as `LogRecord.to_json`."""


@dataclass(frozen=True)
class Evidence:
    """What one rank knows of all when it stops."""

    rank: int
    size: int
    reason: StopReason
    where: str
    members: Sequence[int]
    """The ranks of the collective that it waited in."""
    detail: str
    """The error of the connection, if there is one."""
    timeout_s: float
    reports: Mapping[int, Report]
    """By rank, its own included."""
    alive: frozenset[int]
    logs: Mapping[int, LogRecord]

    @property
    def gone(self) -> list[int]:
        """The ranks that neither report nor live."""
        return [rank for rank in range(self.size) if rank not in self.reports and rank not in self.alive]


@dataclass(frozen=True)
class Diagnosis:
    """A failure in words."""

    code: str
    message: str
    notes: tuple[str, ...] = ()
    help: str = ""


def diagnose(seen: Evidence) -> Diagnosis:
    """What happened: an error of one rank, its end, calls that differ, a rank that is late, a lost connection."""
    for made in (_failure, _end, _different_calls, _late):
        found = made(seen)
        if found is not None:
            return Diagnosis(found.code, found.message, (*found.notes, *_notes(seen)), found.help)
    reason = f": {cleaned(seen.detail)}" if seen.detail else ""
    return Diagnosis("E0351", f"rank {seen.rank} lost a connection in {seen.where}{reason}", _notes(seen))


def _failure(seen: Evidence) -> Diagnosis | None:
    """An error that a rank reports of itself."""
    for rank, report in seen.reports.items():
        if report.reason in (StopReason.FAILED, StopReason.RAISED):
            log = seen.logs.get(rank, LogRecord())
            where = f" in its {log.calls[-1]}" if log.calls and log.is_open else ""
            before = " before it communicated" if report.reason == StopReason.RAISED else ""
            waiting = f"rank {seen.rank} waited for it in {seen.where}"
            return Diagnosis("E0323", f"rank {rank} failed{where}{before}: {report.error}; {waiting}")
    return None


def _end(seen: Evidence) -> Diagnosis | None:
    """Ranks that are gone, or that have left in good order while others wait."""
    ended = [rank for rank, log in seen.logs.items() if log.has_ended and rank != seen.rank]
    waited = "waited for it" if set(seen.gone) & set(seen.members) else "stopped"
    if ended:
        last = seen.logs[ended[0]].calls
        after = f" after its {last[-1]}" if last else " before its first call"
        own = seen.logs.get(seen.rank, LogRecord())
        inside = f" in its {own.calls[-1]}," if own.is_open else ""
        return Diagnosis(
            "E0350", f"{ranks_have(ended)} ended{after}; rank {seen.rank} {waited}{inside} in {seen.where}"
        )
    if not seen.gone:
        return None
    last = seen.logs.get(seen.gone[0], LogRecord()).calls
    notes = (f"rank {seen.gone[0]} was last seen in its {last[-1]}",) if last else ()
    message = f"{ranks_are(seen.gone)} gone (ended, killed or out of reach); rank {seen.rank} {waited} in {seen.where}"
    return Diagnosis("E0350", message, notes)


def _different_calls(seen: Evidence) -> Diagnosis | None:
    """The first call in which ranks differ: in what they call, else in its details."""
    by_rank = {rank: {call.number: call for call in log.calls} for rank, log in sorted(seen.logs.items())}
    numbers = sorted({number for calls in by_rank.values() for number in calls})
    for number in numbers:
        calls = {rank: own[number] for rank, own in by_rank.items() if number in own}
        aspects = ["", *dict.fromkeys(key for call in calls.values() for key in call.details)]
        for aspect in aspects:
            values = {rank: _aspect(call, aspect) for rank, call in calls.items()}
            if len(set(values.values())) > 1:
                return _difference(calls, aspect, values)
    return None


def _aspect(call: CallRecord, aspect: str) -> str:
    return call.details.get(aspect, "none") if aspect else call.what


def _difference(calls: Mapping[int, CallRecord], aspect: str, values: Mapping[int, str]) -> Diagnosis:
    """E0360 for values of one aspect by rank: those of the most ranks count as right, of equally many the first."""
    groups: dict[str, list[int]] = {}
    for rank, value in values.items():
        groups.setdefault(value, []).append(rank)
    usual = max(groups, key=lambda value: len(groups[value]))
    differing = next(value for value in groups if value != usual)
    ranks, others = groups[differing], groups[usual]
    call = calls[ranks[0]]
    verb = "differs" if len(ranks) == 1 else "differ"
    if aspect:
        own, other = _by(aspect, differing), _by(aspect, usual)
        message = f"{rank_list(ranks)} {verb} in {call}: {own}; on {rank_list(others)}: {other}"
    else:
        message = f"{rank_list(ranks)} {verb} in call {call.number + 1}: {differing}; on {rank_list(others)}: {usual}"
    return Diagnosis("E0360", message, help=_DIFFERENT_HELP)


def _by(aspect: str, value: str) -> str:
    return f"{aspect} {value}"


def _late(seen: Evidence) -> Diagnosis | None:
    """A collective whose members did not all come within the timeout."""
    if seen.reason is StopReason.TIMEOUT:
        missing = [rank for rank in seen.members if rank not in seen.reports and rank != seen.rank]
        message = f"rank {seen.rank} waited {seen.timeout_s:g} s in {seen.where}"
        return Diagnosis("E0322", f"{message} for {rank_list(missing)}" if missing else message, help=_HELP)
    for rank, report in seen.reports.items():
        if report.reason == StopReason.TIMEOUT:
            return Diagnosis("E0322", f"rank {rank} waited {seen.timeout_s:g} s in {report.where}", help=_HELP)
    return None


def _notes(seen: Evidence) -> tuple[str, ...]:
    others = sorted((rank, report.where) for rank, report in seen.reports.items() if rank != seen.rank)
    notes = [f"rank {rank} stopped in {where}" for rank, where in others if where]
    busy = sorted(seen.alive - seen.reports.keys())
    for rank in busy:
        log = seen.logs.get(rank, LogRecord())
        last = f"; its last call was its {log.calls[-1]}" if log.calls and not log.is_open else ""
        inside = f"; it is inside its {log.calls[-1]}" if log.calls and log.is_open else ""
        notes.append(f"rank {rank} is alive, but waited in no collective{last}{inside}")
    if len(notes) > _SHOWN:
        notes[_SHOWN:] = [f"and {len(notes) - _SHOWN} more"]
    return tuple(notes)


def cleaned(detail: str) -> str:
    """A connection's error without the places in torch's C++ sources and without addresses.

    >>> cleaned("[/pytorch/gloo/pair.cc:534] Connection closed by peer [127.0.0.1]:2323\\nmore")
    'Connection closed by peer'
    """
    line = detail.splitlines()[0] if detail else ""
    text = line.rpartition("] ")[2] if line.startswith("[") and ".cc:" in line else line
    return text.partition(" [")[0].rstrip(". ")


def ranks_are(ranks: Sequence[int]) -> str:
    """ "rank 1 is" or "ranks 1, 2 are"."""
    return f"{rank_list(ranks)} {'is' if len(ranks) == 1 else 'are'}"


def ranks_have(ranks: Sequence[int]) -> str:
    """ "rank 1 has" or "ranks 1, 2 have"."""
    return f"{rank_list(ranks)} {'has' if len(ranks) == 1 else 'have'}"
