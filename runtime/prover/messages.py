"""Messages between ranks: each receive has its send, of the same shape and dtype, in the same order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..program.mesh import RankMesh
from .events import Event, Message
from .groups import Ranks
from .order import Sequences


@dataclass(frozen=True)
class Misfit:
    """A message on which its two ranks do not agree: positions among the events of each; None where it has none."""

    source: int
    destination: int
    number: int
    """Which of the messages from the one to the other."""
    sent: int | None
    received: int | None


def partners(mesh: RankMesh, class_of: Ranks, sequences: Sequence[Sequences]) -> Iterator[tuple[int, int]]:
    """(source, destination) of all messages, ranks of equal classes at equal coordinates once."""
    seen: set[tuple[int, int, str, int, int]] = set()
    for rank in range(mesh.ranks):
        mine = int(class_of[rank])
        for message in sequences[mine].partners:
            own, other = mesh.coordinate(rank, (message.axis,)), mesh.peer(rank, message.axis, message.peer)
            key = (mine, int(class_of[other]), f"{message.op} {message.axis}", own, message.peer)
            if key not in seen:
                seen.add(key)
                yield (rank, other) if message.op == "send" else (other, rank)


def first_misfit(mesh: RankMesh, class_of: Ranks, sequences: Sequence[Sequences]) -> Misfit | None:
    """The first message that its ranks do not see alike; None when there is none."""
    for source, destination in partners(mesh, class_of, sequences):
        sender, receiver = sequences[int(class_of[source])], sequences[int(class_of[destination])]
        sent = [at for at, message in sender.messages("send") if _peer(mesh, source, message) == destination]
        asked = [at for at, message in receiver.messages("receive") if _peer(mesh, destination, message) == source]
        for number, (one, other) in enumerate(zip(sent, asked, strict=False)):
            if _tensor(sender.events[one]) != _tensor(receiver.events[other]):
                return Misfit(source, destination, number, one, other)
        shared = min(len(sent), len(asked))
        if len(sent) != len(asked):
            more, less = sent[shared : shared + 1], asked[shared : shared + 1]
            return Misfit(source, destination, shared, *([*each, None][0] for each in (more, less)))
    return None


def _peer(mesh: RankMesh, rank: int, message: Message) -> int:
    return mesh.peer(rank, message.axis, message.peer)


def _tensor(event: Event) -> tuple[tuple[int, ...], str]:
    assert isinstance(event, Message), "it was found among the messages"
    return event.shape, event.dtype
