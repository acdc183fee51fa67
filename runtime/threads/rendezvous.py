"""One collective or message between rank threads: the calls of its ranks, and the computation of its results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import CollectiveError, RunError

_COMBINE: dict[str, Callable[..., Tensor]] = {"sum": torch.add, "max": torch.maximum, "min": torch.minimum}


@dataclass(frozen=True)
class Call:
    """One rank's call of a collective or message; all ranks must agree on all fields but `where`."""

    op: str
    shapes: tuple[tuple[int, ...], ...]
    """Of its tensor, or of the tensors of a bucket."""
    dtype: torch.dtype
    options: tuple[tuple[str, object], ...]
    where: str = field(compare=False)

    def difference(self, other: Call) -> str:
        """The first field that differs, with both values: "the shape: [2], [3]"."""
        if self.op != other.op:
            return f"the op: {self.op}, {other.op}"
        if self.shapes != other.shapes:
            return f"the shape: {self.shape_text}, {other.shape_text}"
        if self.dtype != other.dtype:
            return f"the dtype: {self.dtype}, {other.dtype}"
        pairs = zip(self.options, other.options, strict=True)
        name, mine, theirs = next((a[0], a[1], b[1]) for a, b in pairs if a != b)
        return f"{name}: {mine}, {theirs}"

    @property
    def shape_text(self) -> str:
        """The shape, or those of a bucket."""
        return ", ".join(str(list(shape)) for shape in self.shapes)

    def part(self, index: int) -> dict[str, object]:
        """The options for tensor `index`: of the dims of a bucket, its own."""
        options = dict(self.options)
        dims = options.get("dims")
        return {**options, "dim": dims[index]} if isinstance(dims, tuple) else options


class Rendezvous:
    """One collective of one group: the calls and tensors of the members that have joined, and the ones that wait."""

    def __init__(self, members: tuple[int, ...]) -> None:
        self.members = members
        self.calls: dict[int, Call] = {}
        self.tensors: dict[int, Sequence[Tensor]] = {}
        """By member: its tensor, or those of its bucket."""
        self.shared: list[Tensor | None] = []
        self.complete = False
        self.error: CollectiveError | None = None
        """Why it cannot complete; every member raises it."""
        self.sleepers: list[threading.Lock] = []

    def missing(self) -> list[int]:
        """The members that have not joined."""
        return [rank for rank in self.members if rank not in self.tensors]

    def tensors_in_order(self, index: int = 0) -> list[Tensor]:
        """The members' tensors (number `index` of a bucket) in coordinate order."""
        return [self.tensors[rank][index] for rank in self.members]

    def wake(self) -> None:
        """Wake all waiting members, which then check the state again; the group's lock is held."""
        for lock in self.sleepers:
            lock.release()
        self.sleepers.clear()


class Message:
    """One message: the calls of its two ranks, and the tensor once it was sent."""

    def __init__(self, source: int, destination: int) -> None:
        self.source = source
        self.destination = destination
        self.calls: dict[int, Call] = {}
        self.tensor: Tensor | None = None
        self.complete = False
        self.error: CollectiveError | None = None
        self.sleepers: list[threading.Lock] = []

    def missing(self) -> list[int]:
        """The sender, until it has sent."""
        return [] if self.complete else [self.source]

    def wake(self) -> None:
        """Wake the waiting receiver, which then checks the state again; the group's lock is held."""
        for lock in self.sleepers:
            lock.release()
        self.sleepers.clear()


COALESCED = "_coalesced"
"""The ending of a collective that does for each tensor of a bucket what the one without it does for one tensor."""


def shared_result(call: Call, tensors: list[Tensor], index: int = 0) -> Tensor | None:
    """The result that all members share, or None where each gets its own; `index` is the tensor's in a bucket."""
    op = call.op.removesuffix(COALESCED)
    if op not in ("all_reduce", "all_gather"):
        return None
    options = call.part(index)
    with torch.no_grad():
        if op == "all_reduce":
            return _reduced(tensors, str(options["reduce"]))
        return torch.cat(tensors, dim=_integer(options["dim"]))


def own_result(call: Call, tensors: list[Tensor], position: int, index: int = 0) -> Tensor:
    """The result of the member at `position`; `index` is the tensor's in a bucket."""
    options, op = call.part(index), call.op.removesuffix(COALESCED)
    if op == "permute":
        return tensors[(position - _integer(options["shift"])) % len(tensors)]
    along = _integer(options["dim"] if op == "reduce_scatter" else options["split_dim"])
    chunk = tensors[position].shape[along] // len(tensors)
    with torch.no_grad():
        chunks = [tensor.narrow(along, position * chunk, chunk) for tensor in tensors]
        if op == "reduce_scatter":
            return _reduced(chunks, str(options["reduce"]))
        return torch.cat(chunks, dim=_integer(options["concat_dim"]))


def own_rows(call: Call, members: Sequence[Sequence[Tensor]], position: int) -> Tensor:
    """The rows that come to the member at `position`; each member gives a tensor, and the counts of its rows."""
    rows, _, receive_counts = members[position]
    bound = _integer(dict(call.options)["bound"])
    came = []
    for (tensor, send_counts, _), count in zip(members, receive_counts.tolist(), strict=True):
        sent = send_counts.tolist()
        if sent[position] != count:
            raise RunError(
                "E0338",
                f"{call.where or call.op}: a rank sends {sent[position]} rows to one that expects {count}",
                help="this is an error in the program: the counts must be exchanged before the rows are",
            )
        came.append(tensor.narrow(0, sum(sent[:position]), count))
    result = rows.new_zeros(bound, *rows.shape[1:])
    with torch.no_grad():
        result[: sum(len(part) for part in came)] = torch.cat(came)
    return result


def _reduced(tensors: list[Tensor], reduce: str) -> Tensor:
    if len(tensors) == 1:
        return tensors[0].contiguous()
    combine = _COMBINE[reduce]
    total: Tensor = combine(tensors[0], tensors[1])
    for tensor in tensors[2:]:
        combine(total, tensor, out=total)
    return total


def _integer(value: object) -> int:
    assert isinstance(value, int), "options of collectives are made in this file"
    return value


def mismatch(first: int, a: Call, second: int, b: Call) -> CollectiveError:
    return CollectiveError(
        "E0321",
        f"ranks {first} and {second} differ in {a.difference(b)}",
        notes=((f"rank {first} is at {a.where or a.op}", None), (f"rank {second} is at {b.where or b.op}", None)),
        help="the program is not the same on both ranks, or was compiled wrongly: please report it",
    )


def message_mismatch(message: Message) -> CollectiveError:
    source, destination = message.source, message.destination
    sent, received = message.calls[source], message.calls[destination]
    return CollectiveError(
        "E0321",
        f"rank {destination} receives {_tensor_text(received)}, but rank {source} sent {_tensor_text(sent)}",
        notes=(
            (f"rank {destination} is at {received.where or 'receive'}", None),
            (f"rank {source} was at {sent.where or 'send'}", None),
        ),
        help="the program's sends and receives do not match: please report it",
    )


def _tensor_text(call: Call) -> str:
    return f"{call.shape_text} of {str(call.dtype).removeprefix('torch.')}"
