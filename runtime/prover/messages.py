"""Matching of messages: each receive has its send, of the same value, shape and dtype, in the same order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..program.mesh import RankMesh
from .events import Event, Message
from .groups import Ranks
from .order import EventSequence


@dataclass(frozen=True)
class MessageMismatch:
    """A message on which its two ranks differ. A rank's event position is None where it has no such event."""

    source: int
    destination: int
    number: int
    """Its number among the messages from source to destination."""
    sent: int | None
    received: int | None


def partners(mesh: RankMesh, class_of: Ranks, sequences: Sequence[EventSequence]) -> Iterator[tuple[int, int]]:
    """(source, destination) of all messages, once for ranks of equal classes at equal coordinates."""
    seen: set[tuple[int, int, str, int, int]] = set()
    for rank in range(mesh.ranks):
        mine = int(class_of[rank])
        for message in sequences[mine].partners:
            own, other = mesh.coordinate(rank, (message.axis,)), mesh.peer(rank, message.axis, message.peer)
            key = (mine, int(class_of[other]), f"{message.op} {message.axis}", own, message.peer)
            if key not in seen:
                seen.add(key)
                yield (rank, other) if message.op == "send" else (other, rank)


def first_message_mismatch(
    mesh: RankMesh, class_of: Ranks, sequences: Sequence[EventSequence]
) -> MessageMismatch | None:
    """The first message on which its ranks differ; None where all match."""
    for source, destination in partners(mesh, class_of, sequences):
        sender, receiver = sequences[int(class_of[source])], sequences[int(class_of[destination])]
        sent = [
            position for position, message in sender.messages("send") if _peer(mesh, source, message) == destination
        ]
        asked = [
            position
            for position, message in receiver.messages("receive")
            if _peer(mesh, destination, message) == source
        ]
        for number, (sent_at, received_at) in enumerate(zip(sent, asked, strict=False)):
            if _carried(sender.events[sent_at]) != _carried(receiver.events[received_at]):
                return MessageMismatch(source, destination, number, sent_at, received_at)
        shared = min(len(sent), len(asked))
        if len(sent) != len(asked):
            more, fewer = sent[shared : shared + 1], asked[shared : shared + 1]
            return MessageMismatch(source, destination, shared, *([*positions, None][0] for positions in (more, fewer)))
    return None


def _peer(mesh: RankMesh, rank: int, message: Message) -> int:
    return mesh.peer(rank, message.axis, message.peer)


def _carried(event: Event) -> tuple[tuple[int, ...], str, str]:
    assert isinstance(event, Message), "it was found among the messages"
    return event.shape, event.dtype, event.carries
