"""The proof across ranks: every communicator has one order on all ranks, and no rank waits for ever.

The logs are run as queues. The host of a rank issues in order, and stops at work of its own until its stream has done
it; a stream stops at a wait until the event's work is done, and at a communication until all members have come to
theirs. What can go on does not depend on the order in which queues are looked at, so one run decides.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from .proof import StreamFault, prove_rank
from .stream_log import Communication, Entry, HostWork, Launch, Record, Wait

Works = Launch | HostWork


def prove(logs: Sequence[Sequence[Entry]]) -> None:
    """Raise StreamFault for what the logs of all ranks, in order, do wrong: alone, or together."""
    for rank, log in enumerate(logs):
        try:
            prove_rank(log)
        except StreamFault as fault:
            raise StreamFault(fault.code, f"rank {rank}: {fault.message}", fault.position, fault.path) from None
    _one_order(logs)
    _Queues(logs).run()


def _one_order(logs: Sequence[Sequence[Entry]]) -> None:
    """Refuse members that launch different work on a communicator, or another number of them."""
    launched: dict[str, dict[int, list[tuple[int, Works]]]] = defaultdict(dict)
    members: dict[str, tuple[int, ...]] = {}
    for rank, log in enumerate(logs):
        for position, entry in enumerate(log):
            if isinstance(entry, Launch | HostWork) and entry.communication is not None:
                name = entry.communication.communicator
                members[name] = entry.communication.members
                launched[name].setdefault(rank, []).append((position, entry))
    for name, by_rank in launched.items():
        first, *others = members[name]
        mine = by_rank.get(first, [])
        for other in others:
            theirs = by_rank.get(other, [])
            for number in range(max(len(mine), len(theirs))):
                _same(name, number, (first, mine), (other, theirs))


def _same(
    name: str,
    number: int,
    mine: tuple[int, Sequence[tuple[int, Works]]],
    theirs: tuple[int, Sequence[tuple[int, Works]]],
) -> None:
    texts, places = [], []
    for rank, works in (mine, theirs):
        work = works[number][1] if number < len(works) else None
        said = "nothing" if work is None or work.communication is None else work.communication.what
        members = () if work is None or work.communication is None else work.communication.members
        texts.append(f"rank {rank} {said}")
        places.append((said, members, works[number] if number < len(works) else None))
    if places[0][:2] != places[1][:2]:
        position, path = next((p[2][0], p[2][1].path) for p in places if p[2] is not None)
        raise StreamFault(
            "E0735", f"work {number} of the communicator {name} differs: {texts[0]}, {texts[1]}", position, path
        )


@dataclass
class _Rank:
    log: Sequence[Entry]
    issued: int = 0
    queues: dict[str, deque[tuple[int, Entry]]] = field(default_factory=lambda: defaultdict(deque))
    done: set[int] = field(default_factory=set)
    """The events whose work is done."""
    awaited: int | None = None
    """The position of the work for which the host waits."""
    numbers: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """By communicator: how many of its works are done."""


class _Queues:
    def __init__(self, logs: Sequence[Sequence[Entry]]) -> None:
        self._ranks = [_Rank(log) for log in logs]
        self._arrived: dict[tuple[str, int], set[int]] = defaultdict(set)

    def run(self) -> None:
        """Raise StreamFault E0735 where some rank never ends."""
        pending = deque(range(len(self._ranks)))
        while pending:
            pending += [woken for woken in self._advance(pending.popleft()) if woken not in pending]
        for number, rank in enumerate(self._ranks):
            stuck = [(stream, queue[0]) for stream, queue in rank.queues.items() if queue]
            for stream, (position, entry) in stuck:
                if isinstance(entry, Launch | HostWork):
                    raise StreamFault(
                        "E0735",
                        f'rank {number} never ends: {entry.op} on "{stream}" waits for other ranks, which wait for it',
                        position,
                        entry.path,
                    )

    def _advance(self, number: int) -> set[int]:
        """Run a rank as far as it goes; the ranks that may go on because of it."""
        rank = self._ranks[number]
        woken: set[int] = set()
        moved = True
        while moved:
            moved = self._issue(rank)
            for queue in list(rank.queues.values()):
                while queue and self._ends(number, rank, queue[0][1], woken):
                    position, entry = queue.popleft()
                    moved = True
                    if isinstance(entry, Record):
                        rank.done.add(entry.event)
                    if position == rank.awaited:
                        rank.awaited = None
        return woken

    def _issue(self, rank: _Rank) -> bool:
        before = rank.issued
        while rank.awaited is None and rank.issued < len(rank.log):
            entry = rank.log[rank.issued]
            if isinstance(entry, Launch | HostWork | Record | Wait):
                rank.queues[entry.stream].append((rank.issued, entry))
            if isinstance(entry, HostWork):
                rank.awaited = rank.issued
            rank.issued += 1
        return rank.issued > before

    def _ends(self, number: int, rank: _Rank, entry: Entry, woken: set[int]) -> bool:
        if isinstance(entry, Wait):
            return entry.event in rank.done
        if not isinstance(entry, Launch | HostWork) or entry.communication is None:
            return True
        return self._meets(number, rank, entry.communication, woken)

    def _meets(self, number: int, rank: _Rank, communication: Communication, woken: set[int]) -> bool:
        """Whether all members have come to this work; the ones that came earlier are woken."""
        name = communication.communicator
        place = name, rank.numbers[name]
        here = self._arrived[place]
        here.add(number)
        if not here >= set(communication.members):
            return False
        rank.numbers[name] += 1
        woken |= set(communication.members) - {number}
        return True
