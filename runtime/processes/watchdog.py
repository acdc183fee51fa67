"""The watchdog of a process: detects peers that died, failed or are late, and raises the error of `diagnosis.py`.

Every process writes heartbeats to the store, with its last calls, and, when it stops, a report with its instruction and
reason. A process that waits in a collective checks every quarter of a second whether another one has stopped. So when
one dies, all others stop within seconds. The first to stop writes its diagnosis to the store, and all raise the same.
"""

from __future__ import annotations

import json
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Protocol

import torch.distributed as dist

from ...diagnostics import StrettoError
from ..errors import CollectiveError, PeerFailed
from .calls import CallLog, LogRecord
from .diagnosis import Diagnosis, Evidence, Report, StopReason, diagnose

HEARTBEAT_S = 0.5
"""Seconds between two heartbeats."""
HEARTBEAT_TIMEOUT_S = 2.5
"""After one process has stopped: seconds without a heartbeat after which another one counts as dead."""
JOIN_S = 30.0
"""Seconds that a process which ends waits for its last heartbeat to be written. An interpreter that ends while a thread
is in a store's C++ code is aborted ("terminate called without an active exception"); a busy machine may be slow."""
_POLL = timedelta(seconds=0.25)
_KEY_POLL_S = 0.1
_STOPPED = "stretto/stopped"
_RAISED = "stretto/raised"
_DIAGNOSIS = "stretto/diagnosis"
_HEARTBEAT = "stretto/beat"


class Store(Protocol):
    """torch.distributed's key-value store, which all processes share."""

    def set(self, key: str, value: str) -> None:
        """Write a value."""
        ...

    def get(self, key: str) -> bytes:
        """Read a value; blocks until it exists."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Whether all keys exist."""
        ...

    def compare_set(self, key: str, expected_value: str, desired_value: str) -> bytes:
        """Write a value where the present one, "" for none, is the expected one; the value afterwards."""
        ...


class PendingMessage(Protocol):
    """A message under way; see `messages.Completion`."""

    error: RuntimeError | None
    """Why it failed, if it did."""

    def done_within(self, seconds: float) -> bool:
        """Whether it completes or fails within `seconds`."""
        ...


class Watchdog:
    """The watchdog of one process. All share `store`; `timeout_s` bounds every wait in a collective."""

    def __init__(self, store: Store, rank: int, size: int, timeout_s: float, calls: CallLog | None = None) -> None:
        self.timeout_s = timeout_s
        self.calls = CallLog() if calls is None else calls
        self._store = store
        self._rank = rank
        self._size = size
        self._diagnosis: Diagnosis | None = None
        """Why this process has stopped, if it has."""
        end = threading.Event()
        heartbeat = threading.Thread(
            target=_heartbeat, args=(store, rank, size, self.calls, end), name="stretto-heartbeat", daemon=True
        )
        heartbeat.start()
        self._close = weakref.finalize(self, _end, end, heartbeat, self.calls)

    def close(self) -> None:
        """End the heartbeats of this process."""
        self._close()

    def check(self) -> None:
        """Raise the CollectiveError again with which this process stopped, if it has: its connections are unusable."""
        if self._diagnosis is not None:
            raise _error(self._diagnosis, CollectiveError)

    def wait(self, work: dist.Work, where: str, members: Sequence[int]) -> None:
        """Wait for a collective of `members` that `where` started. Raises CollectiveError where it cannot complete."""
        deadline = time.monotonic() + self.timeout_s
        while True:
            try:
                work.wait(_POLL)
                return
            except RuntimeError as error:
                if work.is_completed():
                    is_late = time.monotonic() >= deadline
                    if _failure(work) is None:
                        return
                    reason = StopReason.TIMEOUT if is_late else StopReason.LOST
                    raise self.stop(reason, where, members, str(error)) from error
            if self._peer_stopped():
                raise self.stop(StopReason.PEER_STOPPED, where, members)
            if time.monotonic() >= deadline:
                raise self.stop(StopReason.TIMEOUT, where, members)

    def wait_for_message(self, message: PendingMessage, where: str, members: Sequence[int]) -> None:
        """Wait for a message between the two ranks `members`, as `wait` does for a collective."""
        deadline = time.monotonic() + self.timeout_s
        while not message.done_within(_POLL.total_seconds()):
            if self._peer_stopped():
                raise self.stop(StopReason.PEER_STOPPED, where, members)
            if time.monotonic() >= deadline:
                raise self.stop(StopReason.TIMEOUT, where, members)
        if message.error is not None:
            raise self.stop(StopReason.LOST, where, members, str(message.error))

    def wait_for_key(self, key: str, worker: int, where: str) -> bytes:
        """Wait for a value that the process `worker` writes to the store once its work is done.

        The work may take longer than `timeout_s`, but not without a heartbeat. Raises CollectiveError where the process
        has stopped without the value, or has no heartbeat for so long.
        """
        beat, deadline = b"", time.monotonic() + self.timeout_s
        try:
            while not self._store.check([key]):
                # It may have written the value, and stopped after that.
                if self._peer_stopped() and not self._store.check([key]):
                    raise self.stop(StopReason.PEER_STOPPED, where, [worker])
                if (latest := self._last_heartbeat(worker)) != beat:
                    beat, deadline = latest, time.monotonic() + self.timeout_s
                elif time.monotonic() >= deadline:
                    raise self.stop(StopReason.TIMEOUT, where, [worker])
                time.sleep(_KEY_POLL_S)
            return self._store.get(key)
        except RuntimeError as error:
            if isinstance(error, StrettoError):
                raise
            raise self.stop(StopReason.LOST, where, [worker], str(error)) from error

    def failed(self, error: str) -> None:
        """Report to the other processes that this one stops with an error of its own."""
        self._publish(StopReason.FAILED, "", error)

    def raised(self, error: str) -> None:
        """Report an error of this process before it communicated, to those that wait for it in the same call."""
        report = Report(StopReason.RAISED, "", error, self.calls.record().to_json())
        try:
            self._store.set(f"{_RAISED}/{self.calls.position}/{self._rank}", json.dumps(asdict(report)))
            self._store.set(f"{_RAISED}/{self.calls.position}", str(self._rank))
        except RuntimeError:
            return  # the store is gone with its process: the next wait says so

    def stop(self, reason: StopReason, where: str, members: Sequence[int], detail: str = "") -> CollectiveError:
        """Report that this process stops, poll the others, and return the error that names the cause."""
        self._publish(reason, where)
        try:
            diagnosis, is_own = self._agreed(reason, where, members, detail)
        except RuntimeError as error:
            message = f"rank {self._rank} stopped in {where}: the process of the store, rank 0 or the launcher, is gone"
            return CollectiveError("E0351", message, notes=((str(error).splitlines()[0], None),))
        self._diagnosis = diagnosis
        return _error(diagnosis, CollectiveError if is_own and diagnosis.code != "E0323" else PeerFailed)

    def _agreed(self, reason: StopReason, where: str, members: Sequence[int], detail: str) -> tuple[Diagnosis, bool]:
        """The diagnosis that all processes raise, and whether this one made it."""
        reports, logs, alive = self._poll_peers()
        if self._store.check([_DIAGNOSIS]):
            return _parsed(self._store.get(_DIAGNOSIS)), False
        own = Report(reason, where, log=self.calls.record().to_json())
        seen = Evidence(
            self._rank, self._size, reason, where, members, detail, self.timeout_s,
            {self._rank: own, **reports}, frozenset(alive), {self._rank: self.calls.record(), **logs},
        )  # fmt: skip
        text = json.dumps(asdict(diagnose(seen)))
        agreed = self._store.compare_set(_DIAGNOSIS, "", text)
        return _parsed(agreed), agreed.decode() == text

    def _publish(self, reason: StopReason, where: str, error: str = "") -> None:
        report = Report(reason, where, error, self.calls.record().to_json())
        try:
            self._store.set(f"{_STOPPED}/{self._rank}", json.dumps(asdict(report)))
            self._store.set(_STOPPED, str(self._rank))
        except RuntimeError:
            return  # the store is gone with its process: `_poll_peers` says so

    def _peer_stopped(self) -> bool:
        """Whether another process has stopped, or has raised in the call in which this one waits."""
        try:
            return self._store.check([_STOPPED]) or self._store.check([f"{_RAISED}/{self.calls.position}"])
        except RuntimeError:
            return True

    def _poll_peers(self) -> tuple[dict[int, Report], dict[int, LogRecord], set[int]]:
        """The other ranks' reports and calls, and the ranks with a new heartbeat.

        Waits at most for the heartbeat timeout, and no longer than until a diagnosis is there.
        """
        others = [rank for rank in range(self._size) if rank != self._rank]
        before = {rank: self._last_heartbeat(rank) for rank in others}
        logs = {rank: _log(beat) for rank, beat in before.items()}
        reports: dict[int, Report] = {}
        alive = {self._rank}
        deadline = time.monotonic() + max(HEARTBEAT_TIMEOUT_S, 5 * heartbeat_period_s(self._size))
        while time.monotonic() < deadline and len(reports) + sum(log.has_ended for log in logs.values()) < len(others):
            for rank in others:
                if rank in reports:
                    continue
                if (report := self._report_of(rank)) is not None:
                    reports[rank], logs[rank] = report, LogRecord.of_json(report.log)
                elif (beat := self._last_heartbeat(rank)) != before[rank]:
                    alive.add(rank)
                    logs[rank] = _log(beat)
            if self._store.check([_DIAGNOSIS]):
                break
            time.sleep(0.05)
        return reports, logs, alive

    def _report_of(self, rank: int) -> Report | None:
        """The report of a process that stopped, or that raised in the call in which this one waits."""
        for key in (f"{_STOPPED}/{rank}", f"{_RAISED}/{self.calls.position}/{rank}"):
            if self._store.check([key]):
                return Report(**json.loads(self._store.get(key)))
        return None

    def _last_heartbeat(self, rank: int) -> bytes:
        key = f"{_HEARTBEAT}/{rank}"
        return self._store.get(key) if self._store.check([key]) else b""


def _error(diagnosis: Diagnosis, kind: type[CollectiveError]) -> CollectiveError:
    notes = tuple((note, None) for note in diagnosis.notes)
    return kind(diagnosis.code, diagnosis.message, notes=notes, help=diagnosis.help)


def _parsed(text: bytes) -> Diagnosis:
    fields = json.loads(text)
    return Diagnosis(fields["code"], fields["message"], tuple(fields["notes"]), fields["help"])


def _log(heartbeat: bytes) -> LogRecord:
    """The calls that a heartbeat tells of."""
    return LogRecord.of_json(json.loads(heartbeat)["log"]) if heartbeat.startswith(b"{") else LogRecord()


def heartbeat_period_s(size: int) -> float:
    """Seconds between two heartbeats of one process; longer for many, so that the store gets at most 2000 a second."""
    return max(HEARTBEAT_S, size / 2000)


def _failure(work: dist.Work) -> RuntimeError | None:
    """The error of a completed collective, or None where it succeeded between two polls."""
    try:
        work.wait()
    except RuntimeError as error:
        return error
    return None


def _heartbeat(store: Store, rank: int, size: int, calls: CallLog, end: threading.Event) -> None:
    count = 0
    try:
        while True:
            is_last = end.is_set()
            store.set(f"{_HEARTBEAT}/{rank}", json.dumps({"beat": count, "log": calls.record().to_json()}))
            count += 1
            if is_last:
                return
            end.wait(heartbeat_period_s(size))
    except RuntimeError:
        return  # the store is gone: the next wait reports it


def _end(end: threading.Event, heartbeat: threading.Thread, calls: CallLog) -> None:
    calls.end()
    end.set()
    heartbeat.join(JOIN_S)
