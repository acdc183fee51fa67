"""Collectives between ranks that are threads of one process.

Members of a group meet in its n-th collective: each deposits its tensor with a description, and the last one computes
what all of them need. Sums run in rank order along the group, so every rank gets the same bits, every time.
Measured start and wait of 4 floats, on 2 cores: 31 us between 2 ranks, 71 between 4, 240 between 8; on a machine that
is busy with other work up to five times as long.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from ..errors import CollectiveError, PeerFailed, RunError
from ..program.mesh import RankMesh
from .rendezvous import Call, Letter, Meeting, misfit, mismatch, own_result, shared_result


class RankGroup:
    """The ranks of one process: makes their communicators, and stops all of them when one fails."""

    def __init__(self, mesh: RankMesh, timeout_s: float = 60.0) -> None:
        self.mesh = mesh
        self.timeout_s = timeout_s
        self.failure: tuple[int | None, BaseException] | None = None
        """The rank that failed first (None: the caller interrupted), and its error."""
        self._lock = threading.Lock()
        self._meetings: dict[tuple[tuple[int, ...], int], Meeting] = {}
        self._letters: dict[tuple[int, int, int], Letter] = {}
        """By source, destination and number: what was sent and not asked for yet, or the other way round."""
        self._last: dict[int, str] = {}
        self._communicators = [InProcessCommunicator(self, rank) for rank in range(mesh.ranks)]

    def communicator(self, rank: int) -> InProcessCommunicator:
        """The communicator of one rank, to be used by one thread at a time."""
        return self._communicators[rank]

    def abort(self, rank: int | None, error: BaseException) -> None:
        """Say that `rank` failed (None: the caller wants to stop).

        Every rank that waits, or starts a collective later, raises at once.
        """
        with self._lock:
            self._fail(rank, error)

    def reset(self) -> None:
        """Forget a failure; no rank may be running."""
        with self._lock:
            self.failure = None
            self._meetings.clear()
            self._letters.clear()
            self._last.clear()
            for communicator in self._communicators:
                communicator.numbers.clear()
                communicator.sent.clear()
                communicator.received.clear()

    def deposit(self, rank: int, members: tuple[int, ...], number: int, call: Call, tensor: Tensor) -> Meeting:
        """Join the meeting; the last member to come computes what is shared."""
        with self._lock:
            meeting = self._meetings.get((members, number))
            if meeting is None:
                meeting = self._meetings[members, number] = Meeting(members)
            self._check(rank, meeting)
            for other, first in islice(meeting.calls.items(), 1):
                if first != call:
                    meeting.error = mismatch(other, first, rank, call)
                    self._fail(rank, meeting.error)
                    raise meeting.error
            meeting.calls[rank] = call
            meeting.tensors[rank] = tensor
            self._last[rank] = call.where
            if len(meeting.tensors) < len(members):
                return meeting
        meeting.shared = shared_result(call, meeting.brought())
        with self._lock:
            del self._meetings[members, number]
            meeting.complete = True
            meeting.wake()
        return meeting

    def post(self, source: int, destination: int, number: int, call: Call, tensor: Tensor | None) -> Letter:
        """One side of a message: the sender brings the tensor, the receiver asks for it (None)."""
        key = (source, destination, number)
        rank = destination if tensor is None else source
        with self._lock:
            letter = self._letters.pop(key, None)
            other = letter
            if letter is None:
                letter = self._letters[key] = Letter(source, destination)
            self._check(rank, letter)
            self._last[rank] = call.where
            letter.calls[rank] = call
            if tensor is not None:
                letter.tensor, letter.complete = tensor, True
            if other is not None and letter.calls[source] != letter.calls[destination]:
                letter.error = misfit(letter)
                letter.wake()
                self._fail(rank, letter.error)
                raise letter.error
            letter.wake()
        return letter

    def check_all_received(self) -> None:
        """Raise CollectiveError E0321 for a message that nobody asked for, or that never came; no rank may run."""
        with self._lock:
            letter = next(iter(self._letters.values()), None)
        if letter is None:
            return
        self.reset()
        sent = letter.calls.get(letter.source)
        what = "sent, and never received" if sent else "asked for, and never sent nor waited for"
        where = next(iter(letter.calls.values())).where
        raise CollectiveError(
            "E0321",
            f"a message from rank {letter.source} to rank {letter.destination} was {what}",
            notes=((f"it is that of {where or 'a send or receive'}", None),),
            help="stretto verify names what is missing; the program was compiled wrongly: please report it",
        )

    def wait(self, rank: int, meeting: Meeting | Letter) -> None:
        """Sleep until the meeting, or the message, is complete."""
        if meeting.complete:
            return
        deadline = time.monotonic() + self.timeout_s
        while True:
            sleep = threading.Lock()
            sleep.acquire()
            with self._lock:
                if meeting.complete:
                    return
                self._check(rank, meeting)
                meeting.asleep.append(sleep)
            woken = sleep.acquire(timeout=max(0.0, deadline - time.monotonic()))
            if not woken and meeting.missing():
                with self._lock:
                    if meeting.missing() and self.failure is None:
                        meeting.error = self._missing(rank, meeting)
                        self._fail(rank, meeting.error)
            if not woken:
                deadline = time.monotonic() + self.timeout_s

    def _fail(self, rank: int | None, error: BaseException) -> None:
        if self.failure is None:
            self.failure = (rank, error)
        for meeting in self._meetings.values():
            meeting.wake()
        for letter in self._letters.values():
            letter.wake()

    def _check(self, rank: int, meeting: Meeting | Letter) -> None:
        """Raise when there was a failure: the meeting's own, or word of another rank's; the lock is held."""
        if meeting.error is not None:
            raise _again(meeting.error)
        if self.failure is not None:
            failed, error = self.failure
            cause = "the step was interrupted" if failed is None else f"rank {failed} failed: {error}"
            raise PeerFailed("E0323", f"rank {rank} stopped because {cause}") from error

    def _missing(self, rank: int, meeting: Meeting | Letter) -> CollectiveError:
        missing = meeting.missing()
        where = meeting.calls[rank].where or meeting.calls[rank].op
        notes = [f"rank {other} last started {self._last.get(other, 'no collective')}" for other in missing]
        return CollectiveError(
            "E0322",
            f"rank {rank} waited {self.timeout_s:g} s in {where} for {_ranks(missing)}",
            notes=tuple((note, None) for note in notes),
        )


class InProcessCommunicator:
    """One rank's part of a `RankGroup`."""

    def __init__(self, group: RankGroup, rank: int) -> None:
        self.rank = rank
        self.numbers: dict[tuple[int, ...], int] = {}
        """How many collectives each group of this rank has started."""
        self.sent: dict[int, int] = {}
        """How many messages each other rank was sent."""
        self.received: dict[int, int] = {}
        """How many messages of each other rank were asked for."""
        self._group = group
        self._members: dict[tuple[str, ...], tuple[int, ...]] = {}

    def coordinate(self, axes: Sequence[str]) -> int:
        """This rank's row-major position in its group over `axes`."""
        return self._group.mesh.coordinate(self.rank, axes)

    def size(self, axes: Sequence[str]) -> int:
        """How many ranks the group over `axes` has."""
        return self._group.mesh.size(axes)

    def all_reduce_start(self, tensor: Tensor, axes: Sequence[str], reduce: str, where: str = "") -> _Handle:
        """See `Communicator.all_reduce_start`."""
        return self._start("all_reduce", tensor, axes, (("reduce", reduce),), where)

    def all_gather_start(self, tensor: Tensor, axes: Sequence[str], dim: int, where: str = "") -> _Handle:
        """See `Communicator.all_gather_start`."""
        return self._start("all_gather", tensor, axes, (("dim", dim),), where)

    def reduce_scatter_start(
        self, tensor: Tensor, axes: Sequence[str], dim: int, reduce: str, where: str = ""
    ) -> _Handle:
        """See `Communicator.reduce_scatter_start`."""
        self._divides(tensor, axes, dim, "reduce_scatter", where)
        return self._start("reduce_scatter", tensor, axes, (("dim", dim), ("reduce", reduce)), where)

    def all_to_all_start(
        self, tensor: Tensor, axes: Sequence[str], split_dim: int, concat_dim: int, where: str = ""
    ) -> _Handle:
        """See `Communicator.all_to_all_start`."""
        self._divides(tensor, axes, split_dim, "all_to_all", where)
        return self._start("all_to_all", tensor, axes, (("split_dim", split_dim), ("concat_dim", concat_dim)), where)

    def send(self, tensor: Tensor, axis: str, peer: int, where: str = "") -> None:
        """See `Communicator.send`."""
        to = self._group.mesh.peer(self.rank, axis, peer)
        number = self.sent.get(to, 0)
        self.sent[to] = number + 1
        self._group.post(self.rank, to, number, Call("message", tuple(tensor.shape), tensor.dtype, (), where), tensor)

    def receive_start(self, axis: str, peer: int, size: Sequence[int], dtype: torch.dtype, where: str = "") -> _Receipt:
        """See `Communicator.receive_start`."""
        source = self._group.mesh.peer(self.rank, axis, peer)
        number = self.received.get(source, 0)
        self.received[source] = number + 1
        call = Call("message", tuple(size), dtype, (), where)
        return _Receipt(self._group, self._group.post(source, self.rank, number, call, None))

    def close(self) -> None:
        """Nothing is held."""

    def _start(
        self, op: str, tensor: Tensor, axes: Sequence[str], options: tuple[tuple[str, object], ...], where: str
    ) -> _Handle:
        key = tuple(axes)
        members = self._members.get(key)
        if members is None:
            members = self._members[key] = self._group.mesh.group(self.rank, key)
        number = self.numbers.get(members, 0)
        self.numbers[members] = number + 1
        call = Call(op, tuple(tensor.shape), tensor.dtype, options, where)
        return _Handle(self._group, self._group.deposit(self.rank, members, number, call, tensor), self.rank)

    def _divides(self, tensor: Tensor, axes: Sequence[str], dim: int, op: str, where: str) -> None:
        if tensor.shape[dim] % self.size(axes):
            raise RunError(
                "E0324",
                f"rank {self.rank}: {where or op} cuts dim {dim} of {list(tensor.shape)} into {self.size(axes)} chunks",
                help="pad the dim to a multiple of the group's size",
            )


class _Handle:
    """A rank's part in one meeting."""

    def __init__(self, group: RankGroup, meeting: Meeting, rank: int) -> None:
        self._group = group
        self._meeting = meeting
        self._rank = rank

    def wait(self) -> Tensor:
        """This rank's result."""
        meeting = self._meeting
        self._group.wait(self._rank, meeting)
        if meeting.shared is not None:
            return meeting.shared
        return own_result(meeting.calls[self._rank], meeting.brought(), meeting.members.index(self._rank))


class _Receipt:
    """A message that its receiver has asked for."""

    def __init__(self, group: RankGroup, letter: Letter) -> None:
        self._group = group
        self._letter = letter

    def wait(self) -> Tensor:
        """What was sent."""
        letter = self._letter
        self._group.wait(letter.destination, letter)
        assert letter.tensor is not None, "a complete message has its tensor"
        return letter.tensor


def _again(error: CollectiveError) -> CollectiveError:
    """The same error for another thread, so that tracebacks do not mix."""
    return CollectiveError(error.code, error.message, notes=error.notes, help=error.help)


def _ranks(ranks: Sequence[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(str(rank) for rank in ranks)
