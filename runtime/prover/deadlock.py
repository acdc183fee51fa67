"""Happens-before over all groups together has no cycle.

A rank's collectives run in the order in which it starts them (one communication lane), and each waits for all members
of its group: so the orders of all ranks together must be one order. Waits add nothing to that, since a wait stands
behind its own start and before the starts that follow it. Done on one rank of each profile (class, and kinds of the
groups it is in), where a cycle among ranks is a cycle among profiles; a cycle found there is looked for among ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .groups import Groups, Ranks, profiles
from .order import Sequences

Meeting = tuple[tuple[str, ...], int, int]
"""One collective of one group: axes, the group (or its kind), and its number in the group's sequence."""


@dataclass(frozen=True)
class Stuck:
    """One rank in a cycle: it starts collective number `at` and its partner waits for it to start number `wanted`."""

    rank: int
    at: int
    wanted: int


def find_cycle(class_of: Ranks, groups: Sequence[Groups], sequences: Sequence[Sequences]) -> list[Stuck]:
    """The ranks of one cycle, each stuck before what the rank before it waits for; empty when there is none."""
    kinds = {each.axes: each.kind[each.of_rank] for each in groups}
    chosen = list(profiles(class_of, groups))
    if not _blocked(_chains(chosen, class_of, kinds, sequences)):
        return []
    exact = {each.axes: each.of_rank for each in groups}
    chains = _chains(range(len(class_of)), class_of, exact, sequences)
    blocked = _blocked(chains)
    return _walk(chains, blocked) if blocked else []


def _chains(
    ranks: Iterable[int], class_of: Ranks, group_of: dict[tuple[str, ...], Ranks], sequences: Sequence[Sequences]
) -> dict[int, list[Meeting]]:
    """The meetings of each rank in the order of its starts."""
    chains: dict[int, list[Meeting]] = {}
    for rank in ranks:
        seen: Counter[tuple[str, ...]] = Counter()
        group = {axes: int(each[rank]) for axes, each in group_of.items()}
        chains[rank] = chain = []
        for axes in sequences[int(class_of[rank])].axes:
            chain.append((axes, group[axes], seen[axes]))
            seen[axes] += 1
    return chains


def _blocked(chains: dict[int, list[Meeting]]) -> dict[int, int]:
    """Run all chains until nobody can go on: the ranks that did not come to their end, and where they stand."""
    expected = Counter(meeting for chain in chains.values() for meeting in chain)
    present: dict[Meeting, list[int]] = {}
    at = dict.fromkeys(chains, 0)
    moving = list(chains)
    while moving:
        rank = moving.pop()
        if at[rank] == len(chains[rank]):
            continue
        meeting = chains[rank][at[rank]]
        here = present.setdefault(meeting, [])
        here.append(rank)
        if len(here) == expected[meeting]:
            for each in present.pop(meeting):
                at[each] += 1
                moving.append(each)
    return {rank: position for rank, position in at.items() if position < len(chains[rank])}


def _walk(chains: dict[int, list[Meeting]], blocked: dict[int, int]) -> list[Stuck]:
    """From a blocked rank to one that it waits for, until one comes again: the cycle."""
    where = {rank: {meeting: at for at, meeting in enumerate(chains[rank])} for rank in blocked}
    rank = min(blocked)
    steps: list[Stuck] = []
    seen: dict[int, int] = {}
    while rank not in seen:
        seen[rank] = len(steps)
        meeting = chains[rank][blocked[rank]]
        partner = next(other for other in sorted(blocked) if where[other].get(meeting, -1) > blocked[other])
        steps.append(Stuck(partner, blocked[partner], where[partner][meeting]))
        rank = partner
    return steps[seen[rank] :]
