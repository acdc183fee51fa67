"""The events of a function in the order of its code, and those of an entry with all that it calls, one after another.

A function's own events are found once, for all of its calls; those of its callees are references. They are put one
after another only at the end, for the entry: there each wait finds its start, in whatever function that stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import ProgramError
from .events import Event, WaitEvent
from .values import Future, Path

MOST_EVENTS = 1 << 20
"""The most starts, sends, receives and waits of one rank in a step: some GB of memory for all that is compared."""


@dataclass(frozen=True)
class Own:
    """An event of the function itself: number `number` in the table; `futures` are what it starts, if anything."""

    index: int
    """The instruction."""
    number: int
    futures: tuple[Future, ...] = ()


@dataclass(frozen=True)
class Waits:
    """A wait for a future of this function, or of a caller."""

    index: int
    future: Future


@dataclass(frozen=True)
class Calls:
    """A call, and the futures that go in and come out: (the callee's, this function's)."""

    index: int
    callee: Pieces
    taken: tuple[tuple[Future, Future], ...]
    given: tuple[tuple[Future, Future], ...]


Piece = Own | Waits | Calls


@dataclass(frozen=True, eq=False)
class Pieces:
    """The events of the function `name`: its own and its callees, in order."""

    name: str
    pieces: tuple[Piece, ...]
    count: int
    """The number of its own and its callees' events."""

    @staticmethod
    def of(name: str, pieces: Sequence[Piece]) -> Pieces:
        """Count the events of a function."""
        return Pieces(name, tuple(pieces), sum(map(_size, pieces)))

    def path(self, position: int) -> Path:
        """The instruction of the event at `position`."""
        for piece in self.pieces:
            if position < _size(piece):
                own_path = ((self.name, piece.index),)
                return own_path + piece.callee.path(position) if isinstance(piece, Calls) else own_path
            position -= _size(piece)
        raise IndexError(position)


def _size(piece: Piece) -> int:
    return piece.callee.count if isinstance(piece, Calls) else 1


def events_of(entry: Pieces, number: Callable[[Event], int]) -> tuple[int, ...]:
    """The events of an entry and of all that it calls, in order: indices into the table of events.

    `number` gives the index of an event. Raises ProgramError E0726 where there are too many.
    """
    if entry.count > MOST_EVENTS:
        raise ProgramError(
            "E0726",
            f"the program cannot be proved: a rank would start, send and wait {entry.count:,} times in a step, "
            f"more than {MOST_EVENTS:,}",
            help="compile with fewer microbatches",
        )
    numbers: list[int] = []
    _append(entry, {}, numbers, number)
    return tuple(numbers)


def _append(
    function: Pieces, starts: Mapping[Future, int], numbers: list[int], number: Callable[[Event], int]
) -> Mapping[Future, int]:
    """Append the events of a call; `starts` are the positions of the futures that it takes. Returns all it knows."""
    known = dict(starts)
    for piece in function.pieces:
        match piece:
            case Own():
                known.update(dict.fromkeys(piece.futures, len(numbers)))
                numbers.append(piece.number)
            case Waits():
                numbers.append(number(WaitEvent(len(numbers) - known[piece.future])))
            case Calls():
                taken = {inner: known[outer] for inner, outer in piece.taken}
                inside = _append(piece.callee, taken, numbers, number)
                known.update({outer: inside[inner] for inner, outer in piece.given})
    return known
