"""What each rank does with others, one step after the other, with names for whom it meets and what it sends."""

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
from .order import Sequences


class Meeting(NamedTuple):
    """One collective of one group: axes, the group (or its kind), and its number in the group's sequence."""

    axes: tuple[str, ...]
    group: int
    number: int


class Letter(NamedTuple):
    """One message: its ranks (or one of each profile), and its number among those from the one to the other."""

    source: int
    destination: int
    number: int


class Word(StrEnum):
    """What is done."""

    START = "start"
    """A collective is started, and waited for later."""
    JOIN = "join"
    """That wait."""
    MEET = "meet"
    """A collective is started; where its wait stands is not known, so it is taken to be here."""
    SEND = "send"
    WAIT = "wait"
    """For a message."""


@dataclass(frozen=True)
class Step:
    """One thing that a rank does."""

    word: Word
    what: Meeting | Letter


Chain = list[Step | None]
"""By event; None where nothing waits for the rank and it waits for nothing."""


class Chains:
    """The steps of ranks, which stand for all those that are `alike`."""

    def __init__(
        self,
        mesh: RankMesh,
        class_of: Ranks,
        group_of: dict[tuple[str, ...], Ranks],
        sequences: Sequence[Sequences],
        alike: Ranks,
    ) -> None:
        self._mesh = mesh
        self._class_of = class_of
        self._group_of = group_of
        self._sequences = sequences
        self._alike = alike

    @property
    def fits(self) -> bool:
        """Whether ranks that are alike send to, and receive from, ranks that are alike."""
        found: dict[tuple[int, str, str, int], int] = {}
        for rank in range(self._mesh.ranks):
            for each in self._sequences[int(self._class_of[rank])].partners:
                key = (int(self._alike[rank]), each.op, each.axis, each.peer)
                peer = int(self._alike[self._mesh.peer(rank, each.axis, each.peer)])
                if found.setdefault(key, peer) != peer:
                    return False
        return True

    def of(self, ranks: Iterable[int]) -> dict[int, Chain]:
        """The steps of each of these ranks."""
        return {rank: self._chain(rank) for rank in ranks}

    def _chain(self, rank: int) -> Chain:
        sequence = self._sequences[int(self._class_of[rank])]
        group = {axes: int(each[rank]) for axes, each in self._group_of.items()}
        met: Counter[tuple[str, ...]] = Counter()
        letters: Counter[tuple[str, int]] = Counter()
        steps: Chain = [None] * len(sequence.events)
        own = int(self._alike[rank])
        for at, each in enumerate(sequence.events):
            if isinstance(each, Collective):
                meeting = Meeting(each.axes, group[each.axes], met[each.axes])
                met[each.axes] += 1
                known = sequence.waits[at] != at
                steps[at] = Step(Word.START if known else Word.MEET, meeting)
                if known:
                    steps[sequence.waits[at]] = Step(Word.JOIN, meeting)
            elif isinstance(each, Message):
                other = int(self._alike[self._mesh.peer(rank, each.axis, each.peer)])
                number = letters[each.op, other]
                letters[each.op, other] += 1
                if each.op == "send":
                    steps[at] = Step(Word.SEND, Letter(own, other, number))
                else:
                    steps[sequence.waits[at]] = Step(Word.WAIT, Letter(other, own, number))
        return steps
