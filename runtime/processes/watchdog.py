"""The watchdog of a process: detects peers that died, failed or are late, and makes the error that names them.

Every process writes heartbeats to the store, and, when it stops, a report with its instruction and reason. A process
that waits in a collective checks every quarter of a second whether another one has stopped. So when one dies, all
others stop within seconds, each with an error that names the dead rank and the instruction in which it waited.
"""

from __future__ import annotations

import json
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Protocol

import torch.distributed as dist

from ..errors import CollectiveError, PeerFailed, rank_list

HEARTBEAT_S = 0.5
"""Seconds between two heartbeats."""
HEARTBEAT_TIMEOUT_S = 2.5
"""After one process has stopped: seconds without a heartbeat after which another one counts as dead."""
JOIN_S = 30.0
"""Seconds that a process which ends waits for its last heartbeat to be written. An interpreter that ends while a thread
is in a store's C++ code is aborted ("terminate called without an active exception"); a busy machine may be slow."""
_POLL = timedelta(seconds=0.25)
_STOPPED = "stretto/stopped"
_HEARTBEAT = "stretto/beat"
_SHOWN = 8
_HELP = "set STRETTO_TIMEOUT_S (seconds) higher where a rank may be late for longer, as when it writes a checkpoint"


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


class PendingMessage(Protocol):
    """A message under way; see `messages.Completion`."""

    error: RuntimeError | None
    """Why it failed, if it did."""

    def done_within(self, seconds: float) -> bool:
        """Whether it completes or fails within `seconds`."""
        ...


class StopReason(StrEnum):
    """Why a process stopped."""

    FAILED = "failed"
    """An error of its own, in `Report.error`."""
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


class Watchdog:
    """The watchdog of one process. All share `store`; `timeout_s` bounds every wait in a collective."""

    def __init__(self, store: Store, rank: int, size: int, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._store = store
        self._rank = rank
        self._size = size
        end = threading.Event()
        heartbeat = threading.Thread(
            target=_heartbeat, args=(store, rank, size, end), name="stretto-heartbeat", daemon=True
        )
        heartbeat.start()
        self._close = weakref.finalize(self, _end, end, heartbeat)

    def close(self) -> None:
        """End the heartbeats of this process."""
        self._close()

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

    def failed(self, error: str) -> None:
        """Report to the other processes that this one stops with an error of its own."""
        self._publish(Report(StopReason.FAILED, "", error))

    def stop(self, reason: StopReason, where: str, members: Sequence[int], detail: str = "") -> CollectiveError:
        """Report that this process stops, poll the others, and return the error that names the cause."""
        self._publish(Report(reason, where))
        try:
            reports, alive = self._poll_peers()
        except RuntimeError as error:
            return CollectiveError(
                "E0351",
                f"rank {self._rank} stopped in {where}: the process of the store, rank 0 or the launcher, is gone",
                notes=((str(error).splitlines()[0], None),),
            )
        gone = [rank for rank in range(self._size) if rank not in reports and rank not in alive]
        notes = self._notes(reports, alive)
        for rank, report in reports.items():
            if report.reason == StopReason.FAILED:
                message = f"rank {self._rank} stopped in {where} because rank {rank} failed: {report.error}"
                return PeerFailed("E0323", message, notes=notes)
        if gone:
            waited = "waited for it" if set(gone) & set(members) else "stopped"
            message = f"{ranks_are(gone)} gone (ended, killed or out of reach); rank {self._rank} {waited} in {where}"
            return CollectiveError("E0350", message, notes=notes)
        if reason is StopReason.TIMEOUT:
            missing = [rank for rank in members if rank not in reports and rank != self._rank]
            message = self._too_late(self._rank, where, missing)
            return CollectiveError("E0322", message, notes=notes, help=_HELP)
        for rank, report in reports.items():
            if report.reason == StopReason.TIMEOUT:
                message = f"rank {self._rank} stopped in {where} because {self._too_late(rank, report.where, ())}"
                return PeerFailed("E0323", message, notes=notes)
        first = detail.splitlines()[0] if detail else "no reason given"
        return CollectiveError("E0351", f"rank {self._rank} lost a connection in {where}: {first}", notes=notes)

    def _too_late(self, rank: int, where: str, missing: Sequence[int]) -> str:
        message = f"rank {rank} waited {self.timeout_s:g} s in {where}"
        return f"{message} for {rank_list(missing)}" if missing else message

    def _notes(self, reports: dict[int, Report], alive: set[int]) -> tuple[tuple[str, None], ...]:
        notes = [f"rank {rank} stopped in {report.where}" for rank, report in sorted(reports.items()) if report.where]
        busy = sorted(alive - reports.keys() - {self._rank})
        if busy:
            notes.append(f"{ranks_are(busy)} alive, but waited in no collective")
        if len(notes) > _SHOWN:
            notes[_SHOWN:] = [f"and {len(notes) - _SHOWN} more"]
        return tuple((note, None) for note in notes)

    def _publish(self, report: Report) -> None:
        try:
            self._store.set(f"{_STOPPED}/{self._rank}", json.dumps(asdict(report)))
            self._store.set(_STOPPED, str(self._rank))
        except RuntimeError:
            return  # the store is gone with its process: `_poll_peers` says so

    def _peer_stopped(self) -> bool:
        try:
            return self._store.check([_STOPPED])
        except RuntimeError:
            return True

    def _poll_peers(self) -> tuple[dict[int, Report], set[int]]:
        """The other ranks' reports, and the ranks with a new heartbeat. Waits at most for the heartbeat timeout."""
        others = [rank for rank in range(self._size) if rank != self._rank]
        before = {rank: self._last_heartbeat(rank) for rank in others}
        reports: dict[int, Report] = {}
        alive = {self._rank}
        timeout_s = max(HEARTBEAT_TIMEOUT_S, 5 * heartbeat_period_s(self._size))
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and len(reports) < len(others):
            for rank in others:
                if rank not in reports and self._store.check([f"{_STOPPED}/{rank}"]):
                    reports[rank] = Report(**json.loads(self._store.get(f"{_STOPPED}/{rank}")))
                elif rank not in alive and self._last_heartbeat(rank) != before[rank]:
                    alive.add(rank)
            time.sleep(0.05)
        return reports, alive

    def _last_heartbeat(self, rank: int) -> bytes:
        key = f"{_HEARTBEAT}/{rank}"
        return self._store.get(key) if self._store.check([key]) else b""


def heartbeat_period_s(size: int) -> float:
    """Seconds between two heartbeats of one process; longer for many, so that the store gets at most 2000 a second."""
    return max(HEARTBEAT_S, size / 2000)


def ranks_are(ranks: Sequence[int]) -> str:
    """ "rank 1 is" or "ranks 1, 2 are"."""
    return f"{rank_list(ranks)} {'is' if len(ranks) == 1 else 'are'}"


def _failure(work: dist.Work) -> RuntimeError | None:
    """The error of a completed collective, or None where it succeeded between two polls."""
    try:
        work.wait()
    except RuntimeError as error:
        return error
    return None


def _heartbeat(store: Store, rank: int, size: int, end: threading.Event) -> None:
    count = 0
    try:
        while not end.is_set():
            store.set(f"{_HEARTBEAT}/{rank}", str(count))
            count += 1
            end.wait(heartbeat_period_s(size))
    except RuntimeError:
        return  # the store is gone: the next wait reports it


def _end(end: threading.Event, heartbeat: threading.Thread) -> None:
    end.set()
    heartbeat.join(JOIN_S)
