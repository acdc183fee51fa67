"""Ranks that run their chains: a thread that starts, sends and waits, and a lane of started collectives.

A lane does one collective after the other, in the order of their starts; one is done when all its members' lanes have
come to it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

from .chains import Chain, Letter, Meeting, Word


class Run:
    """All chains, run until nobody can go on."""

    def __init__(self, chains: Mapping[int, Chain]) -> None:
        self.at = dict.fromkeys(chains, 0)
        """The step at which each thread stands."""
        self.lanes: dict[int, deque[Meeting]] = {rank: deque() for rank in chains}
        self.first: dict[Meeting, list[int]] = {}
        """The ranks whose lanes have come to a collective that is not done."""
        self._chains = chains
        steps = [each for chain in chains.values() for each in chain if each is not None]
        self._members = Counter(each.what for each in steps if each.word in (Word.START, Word.MEET))
        self._done: set[Meeting] = set()
        self._sent: set[Letter] = set()
        self._joining: dict[Meeting, list[int]] = {}
        self._waiting: dict[Letter, int] = {}
        self._met: dict[int, int] = {}
        """Where each rank has started a collective and waits for it at once."""
        moving = list(chains)
        while moving:
            moving += self._advance(moving.pop())

    @property
    def blocked(self) -> list[int]:
        """The ranks that did not come to their end."""
        return sorted(rank for rank, at in self.at.items() if at < len(self._chains[rank]))

    def _advance(self, rank: int) -> list[int]:
        """Let a thread do what it can; the ranks whose threads can go on after it."""
        chain = self._chains[rank]
        free: list[int] = []
        while self.at[rank] < len(chain):
            step = chain[self.at[rank]]
            what = None if step is None else step.what
            if step is None or what is None:
                self.at[rank] += 1
                continue
            if isinstance(what, Letter):
                if step.word is Word.SEND:
                    self._sent.add(what)
                    free += [self._waiting.pop(what)] if what in self._waiting else []
                elif what not in self._sent:
                    self._waiting[what] = rank
                    return free
            else:
                if step.word is Word.START or (step.word is Word.MEET and self._met.get(rank) != self.at[rank]):
                    self._met[rank] = self.at[rank]
                    free += self._enter(rank, what)
                if step.word is not Word.START and what not in self._done:
                    self._joining.setdefault(what, []).append(rank)
                    return free
            self.at[rank] += 1
        return free

    def _enter(self, rank: int, meeting: Meeting) -> list[int]:
        """Put a collective into a lane; the ranks that waited for what is done by that."""
        self.lanes[rank].append(meeting)
        free: list[int] = []
        ready = [rank] if len(self.lanes[rank]) == 1 else []
        while ready:
            each = ready.pop()
            meeting = self.lanes[each][0]
            here = self.first.setdefault(meeting, [])
            here.append(each)
            if len(here) == self._members[meeting]:
                self._done.add(meeting)
                free += self._joining.pop(meeting, [])
                for member in self.first.pop(meeting):
                    self.lanes[member].popleft()
                    ready += [member] if self.lanes[member] else []
        return free
