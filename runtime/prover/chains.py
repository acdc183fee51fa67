"""The communication steps of each rank in order, with identities for collectives and messages across ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from ..program.mesh import RankMesh
from .collectives import Collective
from .events import Message
from .groups import Ranks
from .order import EventSequence


class CollectiveId(NamedTuple):
    """The identity of a collective: axes, group (or kind of group), and its number in the group's sequence."""

    axes: tuple[str, ...]
    group: int
    number: int


class MessageId(NamedTuple):
    """The identity of a message: its ranks (or their representatives), and its number among those between them."""

    source: int
    destination: int
    number: int


class StepKind(StrEnum):
    """The kinds of communication steps."""

    START = "start"
    """Start a collective whose wait is a later step."""
    WAIT = "wait"
    """Wait for a collective."""
    START_AND_WAIT = "start and wait"
    """Start a collective whose wait is unknown, and is assumed to follow at once."""
    SEND = "send"
    RECEIVE = "receive"
    """Wait for a message."""


@dataclass(frozen=True)
class Step:
    """One communication step of a rank."""

    kind: StepKind
    subject: CollectiveId | MessageId


Chain = list[Step | None]
"""The steps of one rank, by event; None for an event that neither blocks nor unblocks a rank."""


class Chains:
    """The chains of ranks. Peers are named by their representative: `representative[rank]`, of the same profile."""

    def __init__(
        self,
        mesh: RankMesh,
        class_of: Ranks,
        group_of: dict[tuple[str, ...], Ranks],
        sequences: Sequence[EventSequence],
        representative: Ranks,
    ) -> None:
        self._mesh = mesh
        self._class_of = class_of
        self._group_of = group_of
        self._sequences = sequences
        self._representative = representative

    @property
    def is_consistent(self) -> bool:
        """Whether all ranks of a profile exchange messages with ranks of the same profile."""
        partner_profile: dict[tuple[int, str, str, int], int] = {}
        for rank in range(self._mesh.ranks):
            for message in self._sequences[int(self._class_of[rank])].partners:
                key = (int(self._representative[rank]), message.op, message.axis, message.peer)
                peer = int(self._representative[self._mesh.peer(rank, message.axis, message.peer)])
                if partner_profile.setdefault(key, peer) != peer:
                    return False
        return True

    def steps_of(self, ranks: Iterable[int]) -> dict[int, Chain]:
        """The chain of each of these ranks."""
        return {rank: self._chain(rank) for rank in ranks}

    def _chain(self, rank: int) -> Chain:
        sequence = self._sequences[int(self._class_of[rank])]
        group = {axes: int(group_of_rank[rank]) for axes, group_of_rank in self._group_of.items()}
        collective_counts: Counter[tuple[str, ...]] = Counter()
        message_counts: Counter[tuple[str, int]] = Counter()
        steps: Chain = [None] * len(sequence.events)
        own = int(self._representative[rank])
        for index, event in enumerate(sequence.events):
            if isinstance(event, Collective):
                collective = CollectiveId(event.axes, group[event.axes], collective_counts[event.axes])
                collective_counts[event.axes] += 1
                has_wait = sequence.waits[index] != index
                steps[index] = Step(StepKind.START if has_wait else StepKind.START_AND_WAIT, collective)
                if has_wait:
                    steps[sequence.waits[index]] = Step(StepKind.WAIT, collective)
            elif isinstance(event, Message):
                other = int(self._representative[self._mesh.peer(rank, event.axis, event.peer)])
                number = message_counts[event.op, other]
                message_counts[event.op, other] += 1
                if event.op == "send":
                    steps[index] = Step(StepKind.SEND, MessageId(own, other, number))
                else:
                    steps[sequence.waits[index]] = Step(StepKind.RECEIVE, MessageId(other, own, number))
        return steps
