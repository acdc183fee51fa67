"""The order of collectives: all ranks of a group start the same collectives in the same order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property

from .collectives import Collective
from .events import Event, Message, WaitEvent
from .groups import GroupSet

Positions = tuple[int, ...]


class EventSequence:
    """The events of one class of ranks in order: indices into the table of events, and the collectives by axes."""

    def __init__(self, numbers: Sequence[int], table: Sequence[Event]) -> None:
        self.numbers = tuple(numbers)
        self.events = tuple(table[number] for number in numbers)
        self.collectives = sum(isinstance(event, Collective) for event in self.events)
        self._positions: dict[tuple[str, ...], list[int]] = {}
        self._messages: dict[str, list[tuple[int, Message]]] = {}
        for position, event in enumerate(self.events):
            if isinstance(event, Collective):
                self._positions.setdefault(event.axes, []).append(position)
            elif isinstance(event, Message):
                self._messages.setdefault(event.op, []).append((position, event))

    @property
    def axes(self) -> set[tuple[str, ...]]:
        """The axes of all groups."""
        return set(self._positions)

    def messages(self, op: str) -> Sequence[tuple[int, Message]]:
        """All sends, or all receives, with their positions."""
        return self._messages.get(op, ())

    @cached_property
    def partners(self) -> tuple[Message, ...]:
        """One send and one receive for each partner."""
        messages: dict[tuple[str, str, int], Message] = {}
        for op in ("send", "receive"):
            for _, message in self.messages(op):
                messages.setdefault((op, message.axis, message.peer), message)
        return tuple(messages.values())

    @cached_property
    def waits(self) -> dict[int, int]:
        """By position of a collective or receive: the position of its first wait; its own where the wait is unknown."""
        wait_of = {position: position for position, event in enumerate(self.events) if not isinstance(event, WaitEvent)}
        for position, event in enumerate(self.events):
            if isinstance(event, WaitEvent):
                start = position - event.distance
                wait_of[start] = position if wait_of[start] == start else wait_of[start]
        return wait_of

    def numbers_over(self, axes: tuple[str, ...]) -> tuple[int, ...]:
        """The table indices of the collectives over `axes`, in order."""
        return tuple(self.numbers[position] for position in self.positions(axes))

    def positions(self, axes: tuple[str, ...]) -> Positions:
        """The positions of the collectives over `axes` among all events."""
        return tuple(self._positions.get(axes, ()))


def first_difference(
    groups: GroupSet, class_of: Sequence[int], sequences: Sequence[EventSequence]
) -> tuple[tuple[int, int], int] | None:
    """Two ranks of one group, and the index in the group's sequence where they first differ; None where none differ."""
    alike: set[tuple[int, int]] = set()
    for members in groups.first_of_each_kind():
        for rank in members[1:]:
            pair = (class_of[members[0]], class_of[rank])
            if pair[0] == pair[1] or pair in alike:
                continue
            mine, theirs = (sequences[rank_class].numbers_over(groups.axes) for rank_class in pair)
            if mine != theirs:
                shared = min(len(mine), len(theirs))
                position = next((position for position in range(shared) if mine[position] != theirs[position]), shared)
                return (members[0], rank), position
            alike.add(pair)
    return None


def first_swap(
    groups: GroupSet, class_of: Sequence[int], identities: Callable[[int], Sequence[Hashable]]
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Two ranks of one group that start the same collectives in different orders, although shapes match; None if none.

    `identities(rank)` are the identities of the rank's collectives in the group, in order. The second pair is the index
    where the two ranks first differ, and the index at which the second rank starts what the first one starts there.
    """
    alike: set[tuple[int, int]] = set()
    for members in groups.first_of_each_kind():
        for rank in members[1:]:
            pair = (class_of[members[0]], class_of[rank])
            if pair[0] == pair[1] or pair in alike:
                continue
            mine, theirs = identities(members[0]), identities(rank)
            if mine != theirs and Counter(mine) == Counter(theirs):
                position = next(
                    index for index, (own, other) in enumerate(zip(mine, theirs, strict=True)) if own != other
                )
                return (members[0], rank), (position, position + list(theirs[position:]).index(mine[position]))
            alike.add(pair)
    return None
