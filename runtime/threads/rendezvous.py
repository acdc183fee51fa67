"""What ranks of one process bring each other: calls of collectives, meetings, letters; and what comes of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import CollectiveError

_COMBINE: dict[str, Callable[..., Tensor]] = {"sum": torch.add, "max": torch.maximum, "min": torch.minimum}


@dataclass(frozen=True)
class Call:
    """What one rank asks for; members must agree on all but `where`."""

    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    options: tuple[tuple[str, object], ...]
    where: str = field(compare=False)

    def difference(self, other: Call) -> str:
        """What differs, as "this, other"."""
        if self.op != other.op:
            return f"the op: {self.op}, {other.op}"
        if self.shape != other.shape:
            return f"the shape: {list(self.shape)}, {list(other.shape)}"
        if self.dtype != other.dtype:
            return f"the dtype: {self.dtype}, {other.dtype}"
        pairs = zip(self.options, other.options, strict=True)
        name, mine, theirs = next((a[0], a[1], b[1]) for a, b in pairs if a != b)
        return f"{name}: {mine}, {theirs}"


class Meeting:
    """One collective of one group: who has come, what was brought, and who sleeps until it is complete."""

    def __init__(self, members: tuple[int, ...]) -> None:
        self.members = members
        self.calls: dict[int, Call] = {}
        self.tensors: dict[int, Tensor] = {}
        self.shared: Tensor | None = None
        self.complete = False
        self.error: CollectiveError | None = None
        """Why its members cannot meet; every one of them raises it."""
        self.asleep: list[threading.Lock] = []

    def missing(self) -> list[int]:
        """The members that have not come."""
        return [rank for rank in self.members if rank not in self.tensors]

    def brought(self) -> list[Tensor]:
        """The members' tensors in coordinate order."""
        return [self.tensors[rank] for rank in self.members]

    def wake(self) -> None:
        """Let everyone who waits look again; the group's lock is held."""
        for lock in self.asleep:
            lock.release()
        self.asleep.clear()


class Letter:
    """One message: what its two ranks say of it, and the tensor once it was sent."""

    def __init__(self, source: int, destination: int) -> None:
        self.source = source
        self.destination = destination
        self.calls: dict[int, Call] = {}
        self.tensor: Tensor | None = None
        self.complete = False
        self.error: CollectiveError | None = None
        self.asleep: list[threading.Lock] = []

    def missing(self) -> list[int]:
        """The sender, as long as nothing was sent."""
        return [] if self.complete else [self.source]

    def wake(self) -> None:
        """Let the receiver look again; the group's lock is held."""
        for lock in self.asleep:
            lock.release()
        self.asleep.clear()


def shared_result(call: Call, tensors: list[Tensor]) -> Tensor | None:
    """What all members get alike, or None where each gets its own."""
    options = dict(call.options)
    with torch.no_grad():
        if call.op == "all_reduce":
            return _reduced(tensors, str(options["reduce"]))
        if call.op == "all_gather":
            return torch.cat(tensors, dim=_dim(options["dim"]))
    return None


def own_result(call: Call, tensors: list[Tensor], position: int) -> Tensor:
    """What the member at `position` gets for itself."""
    options = dict(call.options)
    along = _dim(options["dim"] if call.op == "reduce_scatter" else options["split_dim"])
    chunk = call.shape[along] // len(tensors)
    with torch.no_grad():
        pieces = [each.narrow(along, position * chunk, chunk) for each in tensors]
        if call.op == "reduce_scatter":
            return _reduced(pieces, str(options["reduce"]))
        return torch.cat(pieces, dim=_dim(options["concat_dim"]))


def _reduced(tensors: list[Tensor], reduce: str) -> Tensor:
    if len(tensors) == 1:
        return tensors[0].contiguous()
    combine = _COMBINE[reduce]
    total: Tensor = combine(tensors[0], tensors[1])
    for each in tensors[2:]:
        combine(total, each, out=total)
    return total


def _dim(value: object) -> int:
    assert isinstance(value, int), "options of collectives are made in this file"
    return value


def mismatch(first: int, a: Call, second: int, b: Call) -> CollectiveError:
    return CollectiveError(
        "E0321",
        f"ranks {first} and {second} differ in {a.difference(b)}",
        notes=((f"rank {first} is at {a.where or a.op}", None), (f"rank {second} is at {b.where or b.op}", None)),
        help="the program is not the same on both ranks, or was compiled wrongly: please report it",
    )


def misfit(letter: Letter) -> CollectiveError:
    sent, asked = letter.calls[letter.source], letter.calls[letter.destination]
    return CollectiveError(
        "E0321",
        f"rank {letter.destination} receives {_tensor_text(asked)}, but rank {letter.source} sent {_tensor_text(sent)}",
        notes=(
            (f"rank {letter.destination} is at {asked.where or 'receive'}", None),
            (f"rank {letter.source} was at {sent.where or 'send'}", None),
        ),
        help="the program's sends and receives do not fit each other: please report it",
    )


def _tensor_text(call: Call) -> str:
    return f"{list(call.shape)} of {str(call.dtype).removeprefix('torch.')}"
