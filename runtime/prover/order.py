"""Every group sees the same collectives in the same order on all its ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property

from .collectives import Collective
from .events import Arrival, Event, Message
from .groups import Groups

Positions = tuple[int, ...]


class Sequences:
    """The events of one class of ranks: numbers into a table, all together, and collectives by their group's axes."""

    def __init__(self, numbers: Sequence[int], table: Sequence[Event]) -> None:
        self.numbers = tuple(numbers)
        self.events = tuple(table[number] for number in numbers)
        self.collectives = sum(isinstance(each, Collective) for each in self.events)
        self._positions: dict[tuple[str, ...], list[int]] = {}
        self._messages: dict[str, list[tuple[int, Message]]] = {}
        for position, each in enumerate(self.events):
            if isinstance(each, Collective):
                self._positions.setdefault(each.axes, []).append(position)
            elif isinstance(each, Message):
                self._messages.setdefault(each.op, []).append((position, each))

    @property
    def axes(self) -> set[tuple[str, ...]]:
        """The axes of all groups."""
        return set(self._positions)

    def messages(self, op: str) -> Sequence[tuple[int, Message]]:
        """All sends, or all receives, and where they stand."""
        return self._messages.get(op, ())

    @cached_property
    def partners(self) -> tuple[Message, ...]:
        """One message of each kind for each partner."""
        found: dict[tuple[str, str, int], Message] = {}
        for op in ("send", "receive"):
            for _, each in self.messages(op):
                found.setdefault((op, each.axis, each.peer), each)
        return tuple(found.values())

    @cached_property
    def waits(self) -> dict[int, int]:
        """Where each collective and receive is waited for; at once, where its wait is not known."""
        found = {position: position for position, each in enumerate(self.events) if not isinstance(each, Arrival)}
        for position, each in enumerate(self.events):
            if isinstance(each, Arrival):
                found[position - each.back] = position
        return found

    def over(self, axes: tuple[str, ...]) -> tuple[int, ...]:
        """The numbers of the collectives over `axes`, in order."""
        return tuple(self.numbers[position] for position in self.positions(axes))

    def positions(self, axes: tuple[str, ...]) -> Positions:
        """Where these stand among all collectives of the class."""
        return tuple(self._positions.get(axes, ()))


def first_difference(
    groups: Groups, class_of: Sequence[int], sequences: Sequence[Sequences]
) -> tuple[tuple[int, int], int] | None:
    """Two ranks of one group and the position in the group's sequence where they first differ; None when none do."""
    alike: set[tuple[int, int]] = set()
    for members in groups.first_of_each_kind():
        for rank in members[1:]:
            pair = (class_of[members[0]], class_of[rank])
            if pair[0] == pair[1] or pair in alike:
                continue
            mine, theirs = (sequences[each].over(groups.axes) for each in pair)
            if mine != theirs:
                shared = min(len(mine), len(theirs))
                at = next((at for at in range(shared) if mine[at] != theirs[at]), shared)
                return (members[0], rank), at
            alike.add(pair)
    return None


def first_exchange(
    groups: Groups, class_of: Sequence[int], named: Callable[[int], Sequence[Hashable]]
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Two ranks of one group that start the same collectives in another order, as their identities tell.

    `named(rank)` identifies the rank's collectives of the group, in order. Then the position where the two first
    differ, and the position at which the second rank starts what the first starts there; None when there are none.
    """
    alike: set[tuple[int, int]] = set()
    for members in groups.first_of_each_kind():
        for rank in members[1:]:
            pair = (class_of[members[0]], class_of[rank])
            if pair[0] == pair[1] or pair in alike:
                continue
            mine, theirs = named(members[0]), named(rank)
            if mine != theirs and Counter(mine) == Counter(theirs):
                at = next(at for at, (one, other) in enumerate(zip(mine, theirs, strict=True)) if one != other)
                return (members[0], rank), (at, at + list(theirs[at:]).index(mine[at]))
            alike.add(pair)
    return None
