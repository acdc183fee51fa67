"""Deadlock detection: happens-before over all groups and messages has no cycle.

The model: a rank has one thread, and one queue of collectives under NCCL, one for each communicator under gloo. The
collectives of a queue run in the order of their starts, each when the queues of all members have reached it. The thread
continues until it waits for one. A send does not block; the wait of a receive blocks until its send.

The simulation first runs one rank of each profile (class, and kinds of its groups), because a cycle among ranks is a
cycle among profiles. Only where it finds one, it runs all ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..program.mesh import RankMesh
from .chains import Chain, Chains, CollectiveId, MessageId, StepKind
from .groups import GroupSet, Ranks, profiles
from .order import EventSequence
from .queues import Backend, QueueSimulation

_MAKES = (StepKind.START, StepKind.START_AND_WAIT, StepKind.SEND)


@dataclass(frozen=True)
class BlockedRank:
    """One rank in a cycle: it is blocked at event `position`; another rank waits for its event `needed_position`."""

    rank: int
    position: int
    needed_position: int


@dataclass(frozen=True)
class Deadlock:
    """A deadlock of a step."""

    cycle: list[BlockedRank]
    """The ranks of one cycle, each blocked before the event that the previous one waits for."""
    is_safe_under_gloo: bool
    """Whether there is none where each communicator has a queue of its own."""


def find_deadlock(
    mesh: RankMesh, class_of: Ranks, groups: Sequence[GroupSet], sequences: Sequence[EventSequence]
) -> Deadlock | None:
    """The deadlock under NCCL's rule, which is the stricter one; None without one. Every receive must have its send."""
    kinds = {group_set.axes: group_set.kind[group_set.group_of_rank] for group_set in groups}
    representatives, representative = profiles(class_of, groups)
    profile_chains = Chains(mesh, class_of, kinds, sequences, representative)
    if profile_chains.is_consistent and not QueueSimulation(profile_chains.steps_of(representatives)).blocked:
        return None
    group_numbers = {group_set.axes: group_set.group_of_rank for group_set in groups}
    all_ranks = np.arange(len(class_of))
    chains = Chains(mesh, class_of, group_numbers, sequences, all_ranks).steps_of(range(len(class_of)))
    run = QueueSimulation(chains)
    if not run.blocked:
        return None
    return Deadlock(_Walk(chains, run).cycle(), not QueueSimulation(chains, Backend.GLOO).blocked)


class _Walk:
    """A walk from a blocked rank to the rank that it waits for. A node is a rank's thread or its queue."""

    def __init__(self, chains: Mapping[int, Chain], run: QueueSimulation) -> None:
        self._chains = chains
        self._run = run
        self._position_of: dict[int, dict[CollectiveId | MessageId, int]] = {
            rank: {
                step.subject: position
                for position, step in enumerate(chains[rank])
                if step is not None and step.kind in _MAKES
            }
            for rank in run.blocked
        }

    def cycle(self) -> list[BlockedRank]:
        """The blocked ranks from one node to itself."""
        steps: list[BlockedRank] = []
        seen: dict[tuple[bool, int], int] = {}
        node = (False, self._run.blocked[0])
        while node not in seen:
            seen[node] = len(steps)
            in_queue, rank = node
            if not in_queue and not isinstance(self._waits_for(rank), MessageId):
                node = (True, rank)
                continue
            node, step = self._missing_member(rank) if in_queue else self._missing_sender(rank)
            steps.append(step)
        return steps[seen[node] :]

    def _waits_for(self, rank: int) -> CollectiveId | MessageId:
        step = self._chains[rank][self._run.position[rank]]
        assert step is not None, "a blocked rank is at a step"
        return step.subject

    def _missing_sender(self, rank: int) -> tuple[tuple[bool, int], BlockedRank]:
        """The sender of the message that a thread waits for."""
        message = self._waits_for(rank)
        assert isinstance(message, MessageId), "it waits for a message"
        source = message.source
        return (False, source), BlockedRank(source, self._blocked_position(source), self._position_of[source][message])

    def _missing_member(self, rank: int) -> tuple[tuple[bool, int], BlockedRank]:
        """A member that has not reached the collective at which a queue waits.

        Its own queue waits at another collective, or its thread has not started this one.
        """
        collective = self._run.queues[rank, ()][0]
        arrived = self._run.arrived[collective]
        other = next(
            member
            for member, positions in self._position_of.items()
            if member not in arrived and collective in positions
        )
        needed = self._position_of[other][collective]
        if collective in self._run.queues[other, ()]:
            return (True, other), BlockedRank(other, self._position_of[other][self._run.queues[other, ()][0]], needed)
        return (False, other), BlockedRank(other, self._blocked_position(other), needed)

    def _blocked_position(self, rank: int) -> int:
        """The event at which a thread is blocked: its wait for a message, or the start of its queue's collective."""
        if isinstance(self._waits_for(rank), MessageId):
            return self._run.position[rank]
        return self._position_of[rank][self._run.queues[rank, ()][0]]
