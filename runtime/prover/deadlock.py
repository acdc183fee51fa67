"""Happens-before over all groups and messages together has no cycle.

A rank's collectives run in the order in which it starts them (one communication lane, as if all groups shared it), each
when all members of its group have come to it; its instructions go on until they wait for one. A send does not wait; the
wait for a receive waits for its send. Done on one rank of each profile (class, and kinds of the groups it is in), where
a cycle among ranks is a cycle among profiles; a cycle found there is looked for among ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..program.mesh import RankMesh
from .chains import Chain, Chains, Letter, Meeting, Word
from .groups import Groups, Ranks, profiles
from .lanes import Run
from .order import Sequences

_MAKES = (Word.START, Word.MEET, Word.SEND)


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
    few = Chains(mesh, class_of, kinds, sequences, alike)
    if few.fits and not Run(few.of(chosen)).blocked:
        return []
    exact = {each.axes: each.of_rank for each in groups}
    everyone = np.arange(len(class_of))
    chains = Chains(mesh, class_of, exact, sequences, everyone).of(range(len(class_of)))
    run = Run(chains)
    return _Walk(chains, run).cycle() if run.blocked else []


class _Walk:
    """From what a rank waits for to who should do it. A thread waits, or the lane behind it does."""

    def __init__(self, chains: Mapping[int, Chain], run: Run) -> None:
        self._chains = chains
        self._run = run
        self._where: dict[int, dict[Meeting | Letter, int]] = {
            rank: {step.what: at for at, step in enumerate(chains[rank]) if step is not None and step.word in _MAKES}
            for rank in run.blocked
        }

    def cycle(self) -> list[Stuck]:
        """The steps from one that waits to itself."""
        steps: list[Stuck] = []
        seen: dict[tuple[bool, int], int] = {}
        here = (False, self._run.blocked[0])
        while here not in seen:
            seen[here] = len(steps)
            in_lane, rank = here
            if not in_lane and not isinstance(self._waits_for(rank), Letter):
                here = (True, rank)
                continue
            here, step = self._behind(rank) if in_lane else self._sender(rank)
            steps.append(step)
        return steps[seen[here] :]

    def _waits_for(self, rank: int) -> Meeting | Letter:
        step = self._chains[rank][self._run.at[rank]]
        assert step is not None, "nobody is stuck at nothing"
        return step.what

    def _sender(self, rank: int) -> tuple[tuple[bool, int], Stuck]:
        """Who should send what a thread waits for."""
        letter = self._waits_for(rank)
        assert isinstance(letter, Letter), "it waits for a message"
        source = letter.source
        return (False, source), Stuck(source, self._stands_at(source), self._where[source][letter])

    def _behind(self, rank: int) -> tuple[tuple[bool, int], Stuck]:
        """Who has not come to the collective that a lane is at: its lane is at another, or its thread is before it."""
        meeting = self._run.lanes[rank][0]
        come = self._run.first[meeting]
        other = next(each for each in self._where if each not in come and meeting in self._where[each])
        wanted = self._where[other][meeting]
        if meeting in self._run.lanes[other]:
            return (True, other), Stuck(other, self._where[other][self._run.lanes[other][0]], wanted)
        return (False, other), Stuck(other, self._stands_at(other), wanted)

    def _stands_at(self, rank: int) -> int:
        """Where a thread stands: at a wait for a message, or at the start of the collective that holds it up."""
        if isinstance(self._waits_for(rank), Letter):
            return self._run.at[rank]
        return self._where[rank][self._run.lanes[rank][0]]
