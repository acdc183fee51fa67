"""Collectives between ranks that are threads of one process.

The n-th collective of a group is one rendezvous: each member joins with its tensor and a description of its call, and
the last one computes the shared result. Sums run in coordinate order, so every rank gets the same bits every time.
Measured start and wait of 4 floats, on 2 cores: 31 us between 2 ranks, 71 between 4, 240 between 8; on a busy machine
up to five times as long.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from ..counted_rows import checked_counts
from ..errors import CollectiveError, PeerFailed, RunError, rank_list
from ..program.mesh import RankMesh
from .rendezvous import Call, Message, Rendezvous, message_mismatch, mismatch, own_result, own_rows, shared_result


class RankGroup:
    """The ranks of one process: their communicators, and their common failure, which stops all of them."""

    def __init__(self, mesh: RankMesh, timeout_s: float = 60.0) -> None:
        self.mesh = mesh
        self.timeout_s = timeout_s
        self.failure: tuple[int | None, BaseException] | None = None
        """The rank that failed first (None: the caller interrupted), and its error."""
        self._lock = threading.Lock()
        self._rendezvous: dict[tuple[tuple[int, ...], int], Rendezvous] = {}
        self._messages: dict[tuple[int, int, int], Message] = {}
        """By source, destination and number: messages that were sent and not yet received, or the other way round."""
        self._last_started: dict[int, str] = {}
        self._ended: set[int] = set()
        """The ranks that have ended their part of the step under way."""
        self._communicators = [InProcessCommunicator(self, rank) for rank in range(mesh.ranks)]

    def communicator(self, rank: int) -> InProcessCommunicator:
        """The communicator of one rank, to be used by one thread at a time."""
        return self._communicators[rank]

    def abort(self, rank: int | None, error: BaseException) -> None:
        """Record that `rank` failed (None: the caller interrupted).

        Ranks that wait, or start a collective later, raise PeerFailed at once.
        """
        with self._lock:
            self._fail(rank, error)

    def begin(self) -> None:
        """Note that a step begins on all ranks."""
        self._ended.clear()

    def end(self, rank: int) -> None:
        """Note that a rank has ended its part of the step: those that wait for it raise E0322 at once."""
        with self._lock:
            self._ended.add(rank)
            for waited_for in list[Rendezvous | Message]([*self._rendezvous.values(), *self._messages.values()]):
                if rank in waited_for.missing():
                    waited_for.wake()

    def reset(self) -> None:
        """Clear the failure and all collectives and messages under way; no rank may be running."""
        with self._lock:
            self.failure = None
            self._rendezvous.clear()
            self._messages.clear()
            self._last_started.clear()
            for communicator in self._communicators:
                communicator.collective_counts.clear()
                communicator.sent_counts.clear()
                communicator.received_counts.clear()

    def begin_again(self) -> None:
        """Clear everything in a child that was forked, where another thread may have held the lock."""
        self._lock = threading.Lock()
        self.reset()

    def join(
        self, rank: int, members: tuple[int, ...], number: int, call: Call, tensors: Sequence[Tensor]
    ) -> Rendezvous:
        """Join the rendezvous of a collective; the last member to join computes the shared result."""
        with self._lock:
            rendezvous = self._rendezvous.get((members, number))
            if rendezvous is None:
                rendezvous = self._rendezvous[members, number] = Rendezvous(members)
            self._raise_if_failed(rank, rendezvous)
            for other, first in islice(rendezvous.calls.items(), 1):
                if first != call:
                    rendezvous.error = mismatch(other, first, rank, call)
                    self._fail(rank, rendezvous.error)
                    raise rendezvous.error
            rendezvous.calls[rank] = call
            rendezvous.tensors[rank] = tensors
            self._last_started[rank] = call.where
            if len(rendezvous.tensors) < len(members):
                return rendezvous
        rendezvous.shared = [
            shared_result(call, rendezvous.tensors_in_order(index), index) for index in range(len(tensors))
        ]
        with self._lock:
            del self._rendezvous[members, number]
            rendezvous.complete = True
            rendezvous.wake()
        return rendezvous

    def post(self, source: int, destination: int, number: int, call: Call, tensor: Tensor | None) -> Message:
        """Register one side of a message: the sender with the tensor, the receiver with None."""
        key = (source, destination, number)
        rank = destination if tensor is None else source
        with self._lock:
            message = self._messages.pop(key, None)
            other = message
            if message is None:
                message = self._messages[key] = Message(source, destination)
            self._raise_if_failed(rank, message)
            self._last_started[rank] = call.where
            message.calls[rank] = call
            if tensor is not None:
                message.tensor, message.complete = tensor, True
            if other is not None and message.calls[source] != message.calls[destination]:
                message.error = message_mismatch(message)
                message.wake()
                self._fail(rank, message.error)
                raise message.error
            message.wake()
        return message

    def check_all_received(self) -> None:
        """Raise CollectiveError E0321 for a message without a receive, or without a send; no rank may be running."""
        with self._lock:
            message = next(iter(self._messages.values()), None)
        if message is None:
            return
        self.reset()
        sent = message.calls.get(message.source)
        what = "was sent, but never received" if sent else "has a receive, but no send and no wait"
        where = next(iter(message.calls.values())).where
        raise CollectiveError(
            "E0321",
            f"a message from rank {message.source} to rank {message.destination} {what}",
            notes=((f"it is the message of {where or 'a send or receive'}", None),),
            help="`stretto verify` names the missing instruction; the program was compiled wrongly: please report it",
        )

    def wait(self, rank: int, rendezvous: Rendezvous | Message) -> None:
        """Block until the rendezvous or message is complete.

        Raises CollectiveError E0322 after `timeout_s`, and at once where a rank has ended that it waits for.
        """
        if rendezvous.complete:
            return
        deadline = time.monotonic() + self.timeout_s
        while True:
            sleep = threading.Lock()
            sleep.acquire()
            with self._lock:
                if rendezvous.complete:
                    return
                self._raise_if_failed(rank, rendezvous)
                if not self._ended.isdisjoint(rendezvous.missing()):
                    rendezvous.error = self._missing(rank, rendezvous)
                    self._fail(rank, rendezvous.error)
                    raise rendezvous.error
                rendezvous.sleepers.append(sleep)
            woken = sleep.acquire(timeout=max(0.0, deadline - time.monotonic()))
            if not woken and rendezvous.missing():
                with self._lock:
                    if rendezvous.missing() and self.failure is None:
                        rendezvous.error = self._missing(rank, rendezvous)
                        self._fail(rank, rendezvous.error)
            if not woken:
                deadline = time.monotonic() + self.timeout_s

    def _fail(self, rank: int | None, error: BaseException) -> None:
        if self.failure is None:
            self.failure = (rank, error)
        for rendezvous in self._rendezvous.values():
            rendezvous.wake()
        for message in self._messages.values():
            message.wake()

    def _raise_if_failed(self, rank: int, rendezvous: Rendezvous | Message) -> None:
        """Raise the rendezvous's own error, or PeerFailed where another rank failed; the lock is held."""
        if rendezvous.error is not None:
            raise _copy_of(rendezvous.error)
        if self.failure is not None:
            failed, error = self.failure
            cause = "the step was interrupted" if failed is None else f"rank {failed} failed: {error}"
            raise PeerFailed("E0323", f"rank {rank} stopped because {cause}") from error

    def _missing(self, rank: int, rendezvous: Rendezvous | Message) -> CollectiveError:
        missing = rendezvous.missing()
        where = rendezvous.calls[rank].where or rendezvous.calls[rank].op
        notes = [f"rank {other} last started {self._last_started.get(other, 'no collective')}" for other in missing]
        ended = [other for other in missing if other in self._ended]
        verb = "has" if len(ended) == 1 else "have"
        said = (
            f"waits in {where} for {rank_list(ended)}, which {verb} ended the step without it"
            if ended
            else f"waited {self.timeout_s:g} s in {where} for {rank_list(missing)}"
        )
        return CollectiveError(
            "E0322",
            f"rank {rank} {said}",
            notes=tuple((note, None) for note in notes),
        )


class InProcessCommunicator:
    """The `Communicator` of one rank of a `RankGroup`."""

    def __init__(self, group: RankGroup, rank: int) -> None:
        self.rank = rank
        self.collective_counts: dict[tuple[int, ...], int] = {}
        """By members of a group: the number of collectives that this rank has started in it."""
        self.sent_counts: dict[int, int] = {}
        """By destination: the number of messages sent."""
        self.received_counts: dict[int, int] = {}
        """By source: the number of receives started."""
        self._group = group
        self._members: dict[tuple[str, ...], tuple[int, ...]] = {}

    def coordinate(self, axes: Sequence[str]) -> int:
        """This rank's row-major position in its group over `axes`."""
        return self._group.mesh.coordinate(self.rank, axes)

    def size(self, axes: Sequence[str]) -> int:
        """The number of ranks in the group over `axes`."""
        return self._group.mesh.size(axes)

    def all_reduce_start(self, tensor: Tensor, axes: Sequence[str], reduce: str, where: str = "") -> _Handle:
        """See `Communicator.all_reduce_start`."""
        return self._start_one("all_reduce", tensor, axes, (("reduce", reduce),), where)

    def all_gather_start(self, tensor: Tensor, axes: Sequence[str], dim: int, where: str = "") -> _Handle:
        """See `Communicator.all_gather_start`."""
        return self._start_one("all_gather", tensor, axes, (("dim", dim),), where)

    def reduce_scatter_start(
        self, tensor: Tensor, axes: Sequence[str], dim: int, reduce: str, where: str = ""
    ) -> _Handle:
        """See `Communicator.reduce_scatter_start`."""
        self._check_divisible(tensor, axes, dim, "reduce_scatter", where)
        return self._start_one("reduce_scatter", tensor, axes, (("dim", dim), ("reduce", reduce)), where)

    def all_to_all_start(
        self, tensor: Tensor, axes: Sequence[str], split_dim: int, concat_dim: int, where: str = ""
    ) -> _Handle:
        """See `Communicator.all_to_all_start`."""
        self._check_divisible(tensor, axes, split_dim, "all_to_all", where)
        options = (("split_dim", split_dim), ("concat_dim", concat_dim))
        return self._start_one("all_to_all", tensor, axes, options, where)

    def permute_start(self, tensor: Tensor, axes: Sequence[str], shift: int, where: str = "") -> _Handle:
        """See `Communicator.permute_start`."""
        return self._start_one("permute", tensor, axes, (("shift", shift),), where)

    def all_to_all_rows_start(
        self,
        tensor: Tensor,
        axes: Sequence[str],
        bound: int,
        send_counts: Tensor,
        receive_counts: Tensor,
        where: str = "",
    ) -> _Handle:
        """See `Communicator.all_to_all_rows_start`."""
        checked_counts(tensor, bound, send_counts, receive_counts, self.rank, where)
        return self._start("all_to_all_rows", (tensor, send_counts, receive_counts), axes, (("bound", bound),), where)[
            0
        ]

    def all_reduce_coalesced_start(
        self, tensors: Sequence[Tensor], axes: Sequence[str], reduce: str, where: str = ""
    ) -> list[_Handle]:
        """See `Communicator.all_reduce_coalesced_start`."""
        return self._start("all_reduce_coalesced", tensors, axes, (("reduce", reduce),), where)

    def all_gather_coalesced_start(
        self, tensors: Sequence[Tensor], axes: Sequence[str], dims: Sequence[int], where: str = ""
    ) -> list[_Handle]:
        """See `Communicator.all_gather_coalesced_start`."""
        return self._start("all_gather_coalesced", tensors, axes, (("dims", tuple(dims)),), where)

    def reduce_scatter_coalesced_start(
        self, tensors: Sequence[Tensor], axes: Sequence[str], dims: Sequence[int], reduce: str, where: str = ""
    ) -> list[_Handle]:
        """See `Communicator.reduce_scatter_coalesced_start`."""
        for tensor, dim in zip(tensors, dims, strict=True):
            self._check_divisible(tensor, axes, dim, "reduce_scatter_coalesced", where)
        options = (("dims", tuple(dims)), ("reduce", reduce))
        return self._start("reduce_scatter_coalesced", tensors, axes, options, where)

    def send(self, tensor: Tensor, axis: str, peer: int, where: str = "") -> None:
        """See `Communicator.send`."""
        to = self._group.mesh.peer(self.rank, axis, peer)
        number = self.sent_counts.get(to, 0)
        self.sent_counts[to] = number + 1
        self._group.post(
            self.rank, to, number, Call("message", (tuple(tensor.shape),), tensor.dtype, (), where), tensor
        )

    def receive_start(
        self, axis: str, peer: int, size: Sequence[int], dtype: torch.dtype, where: str = ""
    ) -> _ReceiveHandle:
        """See `Communicator.receive_start`."""
        source = self._group.mesh.peer(self.rank, axis, peer)
        number = self.received_counts.get(source, 0)
        self.received_counts[source] = number + 1
        call = Call("message", (tuple(size),), dtype, (), where)
        return _ReceiveHandle(self._group, self._group.post(source, self.rank, number, call, None))

    def close(self) -> None:
        """Do nothing: the group owns all resources."""

    def _start_one(
        self, op: str, tensor: Tensor, axes: Sequence[str], options: tuple[tuple[str, object], ...], where: str
    ) -> _Handle:
        call = Call(op, (tensor.shape,), tensor.dtype, options, where)
        return _Handle(self._group, self._joined(axes, call, (tensor,)), self.rank, 0)

    def _start(
        self,
        op: str,
        tensors: Sequence[Tensor],
        axes: Sequence[str],
        options: tuple[tuple[str, object], ...],
        where: str,
    ) -> list[_Handle]:
        call = Call(op, tuple(tensor.shape for tensor in tensors), tensors[0].dtype, options, where)
        rendezvous = self._joined(axes, call, tensors)
        return [_Handle(self._group, rendezvous, self.rank, index) for index in range(len(tensors))]

    def _joined(self, axes: Sequence[str], call: Call, tensors: Sequence[Tensor]) -> Rendezvous:
        """The next rendezvous of this rank's group over some axes."""
        key = tuple(axes)
        members = self._members.get(key)
        if members is None:
            members = self._members[key] = self._group.mesh.group(self.rank, key)
        number = self.collective_counts.get(members, 0)
        self.collective_counts[members] = number + 1
        return self._group.join(self.rank, members, number, call, tensors)

    def _check_divisible(self, tensor: Tensor, axes: Sequence[str], dim: int, op: str, where: str) -> None:
        if tensor.shape[dim] % self.size(axes):
            raise RunError(
                "E0324",
                f"rank {self.rank}: {where or op} cannot split dim {dim} of {list(tensor.shape)} into "
                f"{self.size(axes)} equal chunks",
                help="pad the dim to a multiple of the group's size",
            )


class _Handle:
    """The handle of one rank for a collective; of a bucket, for tensor `index`."""

    def __init__(self, group: RankGroup, rendezvous: Rendezvous, rank: int, index: int) -> None:
        self._group = group
        self._rendezvous = rendezvous
        self._rank = rank
        self._index = index

    def wait(self) -> Tensor:
        """This rank's result."""
        rendezvous, index = self._rendezvous, self._index
        self._group.wait(self._rank, rendezvous)
        shared = rendezvous.shared[index]
        if shared is not None:
            return shared
        position = rendezvous.members.index(self._rank)
        if rendezvous.calls[self._rank].op == "all_to_all_rows":
            return own_rows(rendezvous.calls[self._rank], [rendezvous.tensors[r] for r in rendezvous.members], position)
        return own_result(rendezvous.calls[self._rank], rendezvous.tensors_in_order(index), position, index)


class _ReceiveHandle:
    """The handle of a receive."""

    def __init__(self, group: RankGroup, message: Message) -> None:
        self._group = group
        self._message = message

    def wait(self) -> Tensor:
        """The tensor that was sent."""
        message = self._message
        self._group.wait(message.destination, message)
        assert message.tensor is not None, "a complete message has its tensor"
        return message.tensor


def _copy_of(error: CollectiveError) -> CollectiveError:
    """A copy of the error for another thread, so that tracebacks do not mix."""
    return CollectiveError(error.code, error.message, notes=error.notes, help=error.help)
