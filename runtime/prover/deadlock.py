"""Happens-before over all groups together has no cycle.

A rank's collectives run in the order in which it starts them (one communication lane), and each waits for all members
of its group: so the orders of all ranks together must be one order. Waits add nothing to that, since a wait stands
behind its own start and before the starts that follow it. A send does not wait; the wait for a receive waits for its
send. That a start waits too, when sends stand behind it, is more than ranks do: what passes here ends in truth.
Done on one rank of each profile (class, and kinds of the groups it is in), where a cycle among ranks is a cycle among
profiles; a cycle found there is looked for among ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..mesh import RankMesh
from .collectives import Collective
from .events import Message
from .groups import Groups, Ranks, profiles
from .order import Sequences

_WORDS = ("send", "wait")

Meeting = tuple[tuple[str, ...], int, int]
"""One collective of one group: axes, the group (or its kind), and its number in the group's sequence."""
Letter = tuple[str, int, int, int]
""" "send" or "wait", source, destination (ranks, or one of each profile), and the number of the message."""
Step = Meeting | Letter | None
"""What a rank does; None where nothing waits for it and it waits for nothing."""


@dataclass(frozen=True)
class Stuck:
    """One rank in a cycle: it is at event number `at` and its partner waits for it to come to number `wanted`."""

    rank: int
    at: int
    wanted: int


def find_cycle(
    mesh: RankMesh, class_of: Ranks, groups: Sequence[Groups], sequences: Sequence[Sequences]
) -> list[Stuck]:
    """The ranks of one cycle, each stuck before what the rank before it waits for; empty when there is none.

    Every receive must have its send.
    """
    kinds = {each.axes: each.kind[each.of_rank] for each in groups}
    chosen, alike = profiles(class_of, groups)
    few = _Chains(mesh, class_of, kinds, sequences, alike)
    if few.fits and not _blocked(few.of(chosen)):
        return []
    exact = {each.axes: each.of_rank for each in groups}
    everyone = range(len(class_of))
    chains = _Chains(mesh, class_of, exact, sequences, np.arange(len(class_of))).of(everyone)
    blocked = _blocked(chains)
    return _walk(chains, blocked) if blocked else []


class _Chains:
    """What ranks do, one step after the other; ranks stand for all those that are `alike`."""

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

    def of(self, ranks: Iterable[int]) -> dict[int, list[Step]]:
        """The steps of each of these ranks."""
        return {rank: self._steps(rank) for rank in ranks}

    def _steps(self, rank: int) -> list[Step]:
        sequence = self._sequences[int(self._class_of[rank])]
        group = {axes: int(each[rank]) for axes, each in self._group_of.items()}
        met: Counter[tuple[str, ...]] = Counter()
        sent: Counter[int] = Counter()
        asked: Counter[int] = Counter()
        steps: list[Step] = [None] * len(sequence.events)
        own = int(self._alike[rank])
        for at, each in enumerate(sequence.events):
            if isinstance(each, Collective):
                steps[at] = (each.axes, group[each.axes], met[each.axes])
                met[each.axes] += 1
            elif isinstance(each, Message):
                other = int(self._alike[self._mesh.peer(rank, each.axis, each.peer)])
                if each.op == "send":
                    steps[at] = ("send", own, other, sent[other])
                    sent[other] += 1
                else:
                    steps[sequence.waits[at]] = ("wait", other, own, asked[other])
                    asked[other] += 1
        return steps


def _blocked(chains: dict[int, list[Step]]) -> dict[int, int]:
    """Run all chains until nobody can go on: the ranks that did not come to their end, and where they stand."""
    run = _Run(chains)
    moving = list(chains)
    while moving:
        moving += run.advance(moving.pop())
    return {rank: position for rank, position in run.at.items() if position < len(chains[rank])}


class _Run:
    """Where each rank stands."""

    def __init__(self, chains: dict[int, list[Step]]) -> None:
        self.at = dict.fromkeys(chains, 0)
        self._chains = chains
        self._expected = Counter(step for chain in chains.values() for step in chain if step and step[0] not in _WORDS)
        self._present: dict[Step, list[int]] = {}
        self._sent: set[tuple[int, ...]] = set()
        self._waiting: dict[tuple[int, ...], int] = {}

    def advance(self, rank: int) -> list[int]:
        """Let a rank do what it can; the ranks, itself perhaps among them, that can go on after it."""
        chain = self._chains[rank]
        free: list[int] = []
        while self.at[rank] < len(chain):
            match chain[self.at[rank]]:
                case None:
                    pass
                case ("send", *letter):
                    self._sent.add(tuple(letter))
                    if tuple(letter) in self._waiting:
                        free.append(self._waiting.pop(tuple(letter)))
                case ("wait", *letter):
                    if tuple(letter) not in self._sent:
                        self._waiting[tuple(letter)] = rank
                        return free
                case meeting:
                    here = self._present.setdefault(meeting, [])
                    here.append(rank)
                    if len(here) == self._expected[meeting]:
                        for each in self._present.pop(meeting):
                            self.at[each] += 1
                            free.append(each)
                    return free
            self.at[rank] += 1
        return free


def _walk(chains: dict[int, list[Step]], blocked: dict[int, int]) -> list[Stuck]:
    """From a blocked rank to one that it waits for, until one comes again: the cycle."""
    where = {rank: {step: at for at, step in enumerate(chains[rank])} for rank in blocked}
    rank = min(blocked)
    steps: list[Stuck] = []
    seen: dict[int, int] = {}
    while rank not in seen:
        seen[rank] = len(steps)
        wanted = chains[rank][blocked[rank]]
        if wanted is not None and wanted[0] == "wait":
            wanted = ("send", *wanted[1:])
        partner = next(other for other in sorted(blocked) if where[other].get(wanted, -1) > blocked[other])
        steps.append(Stuck(partner, blocked[partner], where[partner][wanted]))
        rank = partner
    return steps[seen[rank] :]
