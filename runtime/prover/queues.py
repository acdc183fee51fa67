"""Simulation of the ranks' chains: each rank has a thread that starts, sends and waits, and queues of collectives.

A queue runs collectives in the order of their starts. A collective is done when the queues of all members have reached
it. Which collectives share a queue is the target's word: all of a rank, or those of one communicator.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from enum import StrEnum

from .chains import Chain, CollectiveId, MessageId, StepKind


class Backend(StrEnum):
    """What carries collectives between ranks: it says which of them wait for each other."""

    NCCL = "nccl"
    """One launch order over all communicators: a rank's collectives share a queue."""
    GLOO = "gloo"
    """The collectives of one communicator share a queue."""


Queue = tuple[int, tuple[str, ...]]
"""A rank, and the axes of a communicator (none where all share a queue)."""


class QueueSimulation:
    """Runs all chains until every rank has ended or is blocked."""

    def __init__(self, chains: Mapping[int, Chain], backend: Backend = Backend.NCCL) -> None:
        self.position = dict.fromkeys(chains, 0)
        """By rank: the index of the step of its thread."""
        self.queues: defaultdict[Queue, deque[CollectiveId]] = defaultdict(deque)
        self.arrived: dict[CollectiveId, list[int]] = {}
        """By collective that is not done: the ranks whose queues have reached it."""
        self._chains = chains
        self._backend = backend
        steps = [step for chain in chains.values() for step in chain if step is not None]
        self._members = Counter(
            step.subject for step in steps if step.kind in (StepKind.START, StepKind.START_AND_WAIT)
        )
        self._done: set[CollectiveId] = set()
        self._sent: set[MessageId] = set()
        self._waiting_for_collective: dict[CollectiveId, list[int]] = {}
        self._waiting_for_message: dict[MessageId, int] = {}
        self._entered: dict[int, int] = {}
        """By rank: the index of the last step that put a collective into its queue."""
        moving = list(chains)
        while moving:
            moving += self._advance(moving.pop())

    @property
    def blocked(self) -> list[int]:
        """The ranks that have not reached the end of their chains."""
        return sorted(rank for rank, position in self.position.items() if position < len(self._chains[rank]))

    def _advance(self, rank: int) -> list[int]:
        """Run a thread until it blocks; returns the ranks that it unblocks."""
        chain = self._chains[rank]
        free: list[int] = []
        while self.position[rank] < len(chain):
            step = chain[self.position[rank]]
            subject = None if step is None else step.subject
            if step is None or subject is None:
                self.position[rank] += 1
                continue
            if isinstance(subject, MessageId):
                if step.kind is StepKind.SEND:
                    self._sent.add(subject)
                    free += [self._waiting_for_message.pop(subject)] if subject in self._waiting_for_message else []
                elif subject not in self._sent:
                    self._waiting_for_message[subject] = rank
                    return free
            else:
                if step.kind is StepKind.START or (
                    step.kind is StepKind.START_AND_WAIT and self._entered.get(rank) != self.position[rank]
                ):
                    self._entered[rank] = self.position[rank]
                    free += self._enter(rank, subject)
                if step.kind is not StepKind.START and subject not in self._done:
                    self._waiting_for_collective.setdefault(subject, []).append(rank)
                    return free
            self.position[rank] += 1
        return free

    def queue(self, rank: int, collective: CollectiveId) -> Queue:
        """The queue of a rank that a collective is in."""
        return rank, collective.axes if self._backend is Backend.GLOO else ()

    def _enter(self, rank: int, collective: CollectiveId) -> list[int]:
        """Put a collective into a rank's queue; returns the ranks that this unblocks."""
        own = self.queue(rank, collective)
        self.queues[own].append(collective)
        free: list[int] = []
        ready = [own] if len(self.queues[own]) == 1 else []
        while ready:
            reached = ready.pop()
            collective = self.queues[reached][0]
            arrived = self.arrived.setdefault(collective, [])
            arrived.append(reached[0])
            if len(arrived) == self._members[collective]:
                self._done.add(collective)
                free += self._waiting_for_collective.pop(collective, [])
                for member in self.arrived.pop(collective):
                    queue = self.queue(member, collective)
                    self.queues[queue].popleft()
                    ready += [queue] if self.queues[queue] else []
        return free
