"""The proof of one rank's stream program: it reads the log alone, and knows nothing of what wrote it.

The model is CUDA's. A stream runs its work in order. A wait puts all later work of its stream behind what the event
marked when it was recorded. Nothing else orders two streams. Freed memory goes to any later work of the stream whose
pool it belongs to. Proved of each piece of work:

- It is behind the work that made what it reads (E0733), and behind all uses of what it writes.
- Memory is freed only where the stream of its pool is behind all uses, so that what reuses it is, too (E0734). No two
  blocks share an address at once, and work in reused memory is behind all work that used it before.
- Two communications of one communicator are issued one behind the other (E0735).
- What a graph captures is only work of its own streams, which begin behind its first and end before its last, on
  memory that stays where it is (E0736).

A stream's clock says, for each stream, how many of its pieces of work happen before.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .stream_log import (
    Allocate,
    BeginCapture,
    EndCapture,
    Entry,
    Free,
    HostWork,
    Launch,
    Path,
    Record,
    Wait,
)

Clock = dict[str, int]


class StreamFault(Exception):
    """What a log does wrong: `position` is that of the entry."""

    def __init__(self, code: str, message: str, position: int, path: Path = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.position = position
        self.path = path


@dataclass
class _Memory:
    """A block: its place, the last work that wrote it, and the last use on each stream."""

    stream: str
    start: int
    end: int
    static: bool
    captured: bool
    written: tuple[str, int] | None = None
    uses: Clock = field(default_factory=dict)
    before: Clock = field(default_factory=dict)
    """The last uses of what lay there before."""


@dataclass(frozen=True, order=True)
class _Piece:
    """Free memory with the last uses of what lay there."""

    start: int
    end: int
    uses: Mapping[str, int] = field(compare=False)


def prove_rank(log: Sequence[Entry]) -> None:
    """Raise StreamFault for the first entry of a rank's log that breaks a rule."""
    proof = _Proof()
    for position, entry in enumerate(log):
        proof.take(entry, position)
    proof.end(len(log))


class _Proof:
    def __init__(self) -> None:
        self._clocks: dict[str, Clock] = {}
        self._events: dict[int, tuple[Clock, int]] = {}
        """By event: the clock, and the capture in which it was recorded."""
        self._memory: dict[int, _Memory] = {}
        self._live: list[tuple[int, int, int]] = []
        """(start, end, block), sorted."""
        self._pieces: list[_Piece] = []
        self._last: dict[str, tuple[str, int]] = {}
        """By communicator: the stream and number of its last work."""
        self._captures = 0
        self._capture = 0
        """The number of the capture that is under way; 0: none."""
        self._origin = ""
        self._joined: dict[str, int] = {}
        """The streams of the capture, with the number of their last work."""
        self._position = 0
        self._path: Path = ()

    def take(self, entry: Entry, position: int) -> None:
        """The next entry."""
        self._position = position
        self._path = entry.path if isinstance(entry, Launch | HostWork) else ()
        match entry:
            case Launch():
                self._work(entry)
            case HostWork():
                self._refuse(bool(self._capture), "E0736", f"{entry.op} needs the host, and a graph is being captured")
                self._work(entry)
            case Record(stream, event):
                self._events[event] = (dict(self._clock(stream)), self._capture if stream in self._joined else 0)
            case Wait(stream, event):
                self._wait(stream, event)
            case Allocate():
                self._allocate(entry)
            case Free(block):
                self._free(block)
            case BeginCapture(stream):
                self._refuse(bool(self._capture), "E0736", "a graph begins inside of another")
                self._captures += 1
                self._capture, self._origin, self._joined = self._captures, stream, {stream: 0}
            case EndCapture(stream):
                self._end_capture(stream)

    def end(self, position: int) -> None:
        """Nothing comes any more."""
        self._position, self._path = position, ()
        self._refuse(bool(self._capture), "E0736", "a graph is never completed")

    def _clock(self, stream: str) -> Clock:
        return self._clocks.setdefault(stream, {})

    def _refuse(self, wrong: bool, code: str, message: str) -> None:
        if wrong:
            raise StreamFault(code, message, self._position, self._path)

    def _work(self, work: Launch | HostWork) -> None:
        stream = work.stream
        clock = self._clock(stream)
        if self._capture:
            self._refuse(
                stream not in self._joined, "E0736",
                f'"{stream}" does not wait for an event of the graph that is being captured: its work is no part of it',
            )  # fmt: skip
        for block in work.reads:
            memory = self._of(block, "reads")
            made = memory.written
            self._refuse(
                made is None and not memory.static, "E0733", f"{work.op} reads block {block}, which nothing wrote"
            )
            if made is not None and not _behind(clock, stream, {made[0]: made[1]}):
                self._refuse(
                    True, "E0733",
                    f'{work.op} on "{stream}" reads block {block}, and is not behind its maker on "{made[0]}"',
                )  # fmt: skip
            outside = self._capture and not memory.static and not memory.captured
            self._refuse(
                bool(outside), "E0736", f"{work.op} is captured, and reads block {block}, which moves at each step"
            )
        for block in work.writes:
            memory = self._of(block, "writes")
            late = _late(clock, stream, memory.before) or _late(clock, stream, memory.uses)
            self._refuse(
                bool(late), "E0734",
                f'{work.op} on "{stream}" writes block {block} where "{late}" may still use what lies there',
            )  # fmt: skip
        number = clock[stream] = clock.get(stream, 0) + 1
        if self._capture:
            self._joined[stream] = number
        for block in (*work.reads, *work.writes):
            self._memory[block].uses[stream] = number
        for block in work.writes:
            self._memory[block].written = (stream, number)
        if work.communication is not None:
            self._communicates(work, number, clock)

    def _communicates(self, work: Launch | HostWork, number: int, clock: Clock) -> None:
        assert work.communication is not None
        name = work.communication.communicator
        other, before = self._last.get(name, (work.stream, 0))
        self._refuse(
            before > clock.get(other, 0), "E0735",
            f'{work.op} on "{work.stream}" is not behind the last work of its communicator ({name}), on "{other}"',
        )  # fmt: skip
        self._last[name] = (work.stream, number)

    def _wait(self, stream: str, event: int) -> None:
        self._refuse(
            event not in self._events, "E0733", f'"{stream}" waits for event {event}, which nothing has recorded'
        )
        marked, capture = self._events[event]
        if self._capture:
            if capture == self._capture:
                self._joined.setdefault(stream, 0)
            else:
                self._refuse(
                    stream in self._joined, "E0736",
                    f'"{stream}" is captured, and waits for event {event}, which was recorded outside of the graph',
                )  # fmt: skip
        clock = self._clock(stream)
        for other, number in marked.items():
            clock[other] = max(number, clock.get(other, 0))

    def _of(self, block: int, how: str) -> _Memory:
        memory = self._memory.get(block)
        self._refuse(memory is None, "E0734", f"it {how} block {block}, which is not allocated")
        assert memory is not None
        return memory

    def _allocate(self, given: Allocate) -> None:
        start, end = given.address, given.address + given.nbytes
        self._refuse(given.block in self._memory, "E0734", f"block {given.block} is allocated twice")
        index = bisect_left(self._live, (end,))
        for low, high, other in self._live[max(0, index - 1) : index]:
            self._refuse(
                low < end and high > start, "E0734", f"block {given.block} lies in the memory of block {other}"
            )
        insort(self._live, (start, end, given.block))
        memory = _Memory(given.stream, start, end, given.static, bool(self._capture))
        memory.before = self._reused(start, end)
        self._memory[given.block] = memory

    def _reused(self, start: int, end: int) -> Clock:
        """Take free memory; the last uses of what lay there."""
        first = bisect_left(self._pieces, _Piece(start, start, {}))
        first -= 1 if first and self._pieces[first - 1].end > start else 0
        last = first
        uses: Clock = {}
        rest: list[_Piece] = []
        while last < len(self._pieces) and self._pieces[last].start < end:
            piece = self._pieces[last]
            for stream, number in piece.uses.items():
                uses[stream] = max(number, uses.get(stream, 0))
            rest += [_Piece(piece.start, start, piece.uses)] if piece.start < start else []
            rest += [_Piece(end, piece.end, piece.uses)] if piece.end > end else []
            last += 1
        self._pieces[first:last] = rest
        return uses

    def _free(self, block: int) -> None:
        memory = self._of(block, "frees")
        self._refuse(memory.static, "E0734", f"block {block} is freed, and is memory that stays")
        clock = self._clock(memory.stream)
        late = _late(clock, memory.stream, memory.uses)
        self._refuse(
            bool(late), "E0734",
            f'block {block} of "{memory.stream}" is freed while "{late}" may still use it',
        )  # fmt: skip
        outside = bool(self._capture) and not memory.captured
        self._refuse(outside, "E0736", f"block {block} is freed inside of a graph, and was allocated outside of any")
        del self._memory[block]
        self._live.remove((memory.start, memory.end, block))
        insort(self._pieces, _Piece(memory.start, memory.end, {**memory.before, **memory.uses}))

    def _end_capture(self, stream: str) -> None:
        self._refuse(not self._capture or stream != self._origin, "E0736", f'no graph was begun on "{stream}"')
        clock = self._clock(stream)
        late = _late(clock, stream, self._joined)
        self._refuse(bool(late), "E0736", f'the graph ends, and "{stream}" is not behind the work of "{late}" in it')
        self._capture, self._joined = 0, {}


def _late(clock: Clock, stream: str, uses: Mapping[str, int]) -> str:
    """The first stream with a use that a clock does not have before it; empty if there is none."""
    return next((other for other, number in uses.items() if other != stream and number > clock.get(other, 0)), "")


def _behind(clock: Clock, stream: str, uses: Mapping[str, int]) -> bool:
    return not _late(clock, stream, uses)
