"""The log of what the host issues to the streams of a rank's device, in order: what the proof reads.

A recording device writes it without a GPU, `logging_device.py` writes it of a real one. Streams, events and blocks of
memory are numbers or names of this log alone.
"""

from __future__ import annotations

from dataclasses import dataclass

Path = tuple[tuple[str, int], ...]
"""(function, index) pairs that lead to an instruction, first the calls; empty for what belongs to none."""


@dataclass(frozen=True)
class Communication:
    """The part of a rank in a collective or a message, whose kernel ends when all members have launched theirs."""

    communicator: str
    """One a group, and one a direction for messages between two ranks."""
    members: tuple[int, ...]
    what: str
    """What all members must say alike: the op, its reduction, dims and the type of each tensor."""


@dataclass(frozen=True)
class Launch:
    """Work on a stream. It reads and writes whole blocks."""

    stream: str
    op: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    path: Path = ()
    communication: Communication | None = None


@dataclass(frozen=True)
class HostWork:
    """Work for which the host waits: it reads or makes numbers there. No graph may hold it."""

    stream: str
    op: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    path: Path = ()
    communication: Communication | None = None


@dataclass(frozen=True)
class Record:
    """The event marks all that was issued to the stream so far."""

    stream: str
    event: int


@dataclass(frozen=True)
class Wait:
    """What is issued to the stream from now on begins behind the event."""

    stream: str
    event: int


@dataclass(frozen=True)
class Allocate:
    """The allocator gives memory of a stream's pool, or of the graphs' pool of that stream while one is captured."""

    stream: str
    block: int
    address: int
    nbytes: int
    static: bool = False
    """Memory of the program's own, which is never given back: inputs, and what the host makes for captured work."""


@dataclass(frozen=True)
class Free:
    """The memory goes back to its pool: the next work of its stream may have it."""

    block: int


@dataclass(frozen=True)
class BeginCapture:
    """From here on, work of the stream, and of those that wait for its events, goes into a graph."""

    stream: str


@dataclass(frozen=True)
class EndCapture:
    """The graph is complete, and launched on the stream."""

    stream: str


Entry = Launch | HostWork | Record | Wait | Allocate | Free | BeginCapture | EndCapture
