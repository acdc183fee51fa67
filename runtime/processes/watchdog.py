"""Nobody waits for ever: what a process does when a peer dies, fails or does not come.

Every process tells the store that it lives (a beat), and, when it stops, in which instruction and why. A process that
waits in a collective looks up every quarter of a second whether somebody has stopped. So when one goes, all others stop
within seconds, each naming the one that is missing and the instruction it waited in.
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

from ..errors import CollectiveError, PeerFailed

BEAT_S = 0.5
"""How often a process says that it lives."""
SILENCE_S = 2.5
"""Who says nothing for so long, after somebody stopped, is gone."""
PARTING_S = 30.0
"""How long a process that ends waits for its last beat to be over. An interpreter that ends while a thread of it is in
a store's C++ is aborted ("terminate called without an active exception"), and a busy machine is slow to answer."""
_GLANCE = timedelta(seconds=0.25)
_STOPPED = "stretto/stopped"
_BEAT = "stretto/beat"
_SHOWN = 8
_HELP = "set STRETTO_TIMEOUT_S (seconds) higher where ranks may be apart for longer, as when one writes a checkpoint"


class Store(Protocol):
    """What all processes can read and write: torch.distributed's key-value store."""

    def set(self, key: str, value: str) -> None:
        """Write a value."""
        ...

    def get(self, key: str) -> bytes:
        """Read a value; waits for it when it is not there."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Whether all of them are there."""
        ...


class Coming(Protocol):
    """A message under way."""

    error: RuntimeError | None
    """Why it did not come, once it ended so."""

    def ended(self, seconds: float) -> bool:
        """Whether it has come or failed, after at most so long."""
        ...


class Why(StrEnum):
    """Why a process stopped."""

    FAILED = "failed"
    """Its own error; `Report.error` is what it said."""
    LOST = "lost"
    """A connection of its group broke."""
    TIMEOUT = "timeout"
    """Others did not come in time."""
    TOLD = "told"
    """It saw that somebody else had stopped."""


@dataclass(frozen=True)
class Report:
    """What a process that stops leaves in the store."""

    why: str
    where: str
    error: str = ""


class Watchdog:
    """One process's eye on the others. `store` is shared by all; `timeout_s` bounds every wait in a collective."""

    def __init__(self, store: Store, rank: int, size: int, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._store = store
        self._rank = rank
        self._size = size
        end = threading.Event()
        beat = threading.Thread(target=_beat, args=(store, rank, size, end), name="stretto-beat", daemon=True)
        beat.start()
        self._close = weakref.finalize(self, _end, end, beat)

    def close(self) -> None:
        """Say no more that this process lives."""
        self._close()

    def wait(self, work: dist.Work, where: str, members: Sequence[int]) -> None:
        """Wait for a collective of `members` that `where` started; raises CollectiveError when it cannot end."""
        deadline = time.monotonic() + self.timeout_s
        while True:
            try:
                work.wait(_GLANCE)
                return
            except RuntimeError as error:
                if work.is_completed():
                    late = time.monotonic() >= deadline
                    broken = _failure(work)
                    if broken is None:
                        return
                    raise self.stop(Why.TIMEOUT if late else Why.LOST, where, members, str(error)) from error
            if self._somebody_stopped():
                raise self.stop(Why.TOLD, where, members)
            if time.monotonic() >= deadline:
                raise self.stop(Why.TIMEOUT, where, members)

    def wait_for_message(self, message: Coming, where: str, members: Sequence[int]) -> None:
        """Wait for a message between two ranks, as `wait` does for a collective."""
        deadline = time.monotonic() + self.timeout_s
        while not message.ended(_GLANCE.total_seconds()):
            if self._somebody_stopped():
                raise self.stop(Why.TOLD, where, members)
            if time.monotonic() >= deadline:
                raise self.stop(Why.TIMEOUT, where, members)
        if message.error is not None:
            raise self.stop(Why.LOST, where, members, str(message.error))

    def failed(self, error: str) -> None:
        """Tell the others that this process stops with an error of its own."""
        self._publish(Report(Why.FAILED, "", error))

    def stop(self, why: Why, where: str, members: Sequence[int], detail: str = "") -> CollectiveError:
        """Tell the others, see who is still there, and make the error that says so."""
        self._publish(Report(why, where))
        try:
            reports, alive = self._look_around()
        except RuntimeError as error:
            return CollectiveError(
                "E0351",
                f"rank {self._rank} stopped in {where}: the process that keeps the store, rank 0 or the launcher, is "
                "gone",
                notes=((str(error).splitlines()[0], None),),
            )
        gone = [rank for rank in range(self._size) if rank not in reports and rank not in alive]
        notes = self._notes(reports, alive)
        for rank, report in reports.items():
            if report.why == Why.FAILED:
                message = f"rank {self._rank} stopped in {where} because rank {rank} failed: {report.error}"
                return PeerFailed("E0323", message, notes=notes)
        if gone:
            waited = "waited for it" if set(gone) & set(members) else "stopped"
            message = f"{name(gone)} gone (ended, killed or out of reach); rank {self._rank} {waited} in {where}"
            return CollectiveError("E0350", message, notes=notes)
        if why is Why.TIMEOUT:
            missing = [rank for rank in members if rank not in reports and rank != self._rank]
            message = self._too_late(self._rank, where, missing)
            return CollectiveError("E0322", message, notes=notes, help=_HELP)
        for rank, report in reports.items():
            if report.why == Why.TIMEOUT:
                message = f"rank {self._rank} stopped in {where} because {self._too_late(rank, report.where, ())}"
                return PeerFailed("E0323", message, notes=notes)
        first = detail.splitlines()[0] if detail else "no reason given"
        return CollectiveError("E0351", f"rank {self._rank} lost a connection in {where}: {first}", notes=notes)

    def _too_late(self, rank: int, where: str, missing: Sequence[int]) -> str:
        message = f"rank {rank} waited {self.timeout_s:g} s in {where}"
        return f"{message} for {_plural(missing)}" if missing else message

    def _notes(self, reports: dict[int, Report], alive: set[int]) -> tuple[tuple[str, None], ...]:
        notes = [f"rank {rank} stopped in {each.where}" for rank, each in sorted(reports.items()) if each.where]
        busy = sorted(alive - reports.keys() - {self._rank})
        if busy:
            notes.append(f"{name(busy)} alive, but waited in no collective")
        if len(notes) > _SHOWN:
            notes[_SHOWN:] = [f"and {len(notes) - _SHOWN} more"]
        return tuple((note, None) for note in notes)

    def _publish(self, report: Report) -> None:
        try:
            self._store.set(f"{_STOPPED}/{self._rank}", json.dumps(asdict(report)))
            self._store.set(_STOPPED, str(self._rank))
        except RuntimeError:
            return  # the store is gone with its process: `_look_around` says so

    def _somebody_stopped(self) -> bool:
        try:
            return self._store.check([_STOPPED])
        except RuntimeError:
            return True

    def _look_around(self) -> tuple[dict[int, Report], set[int]]:
        """The other ranks' reports, and who has given a beat since; waits until each gave a sign or had its time."""
        others = [rank for rank in range(self._size) if rank != self._rank]
        before = {rank: self._last_beat(rank) for rank in others}
        reports: dict[int, Report] = {}
        alive = {self._rank}
        silence_s = max(SILENCE_S, 5 * period_s(self._size))
        deadline = time.monotonic() + silence_s
        while time.monotonic() < deadline and len(reports) < len(others):
            for rank in others:
                if rank not in reports and self._store.check([f"{_STOPPED}/{rank}"]):
                    reports[rank] = Report(**json.loads(self._store.get(f"{_STOPPED}/{rank}")))
                elif rank not in alive and self._last_beat(rank) != before[rank]:
                    alive.add(rank)
            time.sleep(0.05)
        return reports, alive

    def _last_beat(self, rank: int) -> bytes:
        key = f"{_BEAT}/{rank}"
        return self._store.get(key) if self._store.check([key]) else b""


def period_s(size: int) -> float:
    """Seconds between two beats of one process, so that the store serves at most 2000 a second."""
    return max(BEAT_S, size / 2000)


def name(ranks: Sequence[int]) -> str:
    """ "rank 1 is" or "ranks 1, 2 are"."""
    return f"{_plural(ranks)} {'is' if len(ranks) == 1 else 'are'}"


def _plural(ranks: Sequence[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(str(rank) for rank in ranks)


def _failure(work: dist.Work) -> RuntimeError | None:
    """Why a completed collective failed, or None when it ended well between two looks at it."""
    try:
        work.wait()
    except RuntimeError as error:
        return error
    return None


def _beat(store: Store, rank: int, size: int, end: threading.Event) -> None:
    count = 0
    try:
        while not end.is_set():
            store.set(f"{_BEAT}/{rank}", str(count))
            count += 1
            end.wait(period_s(size))
    except RuntimeError:
        return  # the store is gone: whoever waits finds out


def _end(end: threading.Event, beat: threading.Thread) -> None:
    end.set()
    beat.join(PARTING_S)
