"""The verdict of a proof: safe, with the peak memory, or a counterexample with instructions, sources and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..program.arguments import Json
from ..program.program import Program
from ..program.records import Location
from .collectives import axes_of
from .values import Path


@dataclass(frozen=True)
class Place:
    """An instruction on some ranks: the innermost one, and the calls that lead to it (outermost first)."""

    ranks: tuple[int, ...]
    function: str
    index: int
    op: str
    axes: tuple[str, ...] = ()
    peer: tuple[str, int] | None = None
    """For a message: its axis and the partner's coordinate."""
    location: Location | None = None
    calls: Path = ()

    def __str__(self) -> str:
        over = f" over {', '.join(self.axes)}" if self.axes else self._with
        through = "".join(f", called by {name}[{index}]" for name, index in reversed(self.calls))
        text = f"{_ranks(self.ranks)}: function {self.function}[{self.index}] {self.op}{over}"
        return text + _source(self.location) + through

    @property
    def _with(self) -> str:
        if self.peer is None:
            return ""
        return f" {'to' if self.op == 'comm.send' else 'from'} {self.peer[0]}={self.peer[1]}"

    def to_json(self) -> dict[str, Json]:
        """JSON; `location` is [file, line, module path] or null."""
        place = self.location
        return {
            "ranks": list(self.ranks), "function": self.function, "index": self.index, "op": self.op,
            "axes": list(self.axes), "peer": list(self.peer) if self.peer else None,
            "location": [place.file, place.line, place.module] if place else None,
            "calls": [[name, index] for name, index in self.calls],
        }  # fmt: skip


@dataclass(frozen=True)
class Counterexample:
    """Why a program is not safe; `places` are the instructions that show it, most often two."""

    code: str
    message: str
    places: tuple[Place, ...]
    notes: tuple[str, ...] = ()
    help: str = ""

    def render(self) -> str:
        """The text shown to a person."""
        first = self.places[0].location if self.places else None
        where = f"{first.file}:{first.line}: " if first and first.file else ""
        lines = [f"{where}error[{self.code}]: {self.message}"]
        lines += [f"  {place}" for place in self.places]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, f"help: {self.help}"] if self.help else lines)

    def to_json(self) -> dict[str, Json]:
        return {
            "code": self.code, "message": self.message, "places": [place.to_json() for place in self.places],
            "notes": list(self.notes), "help": self.help,
        }  # fmt: skip


@dataclass(frozen=True)
class PeakMemory:
    """The peak of live tensor bytes on each of `ranks`, and the instruction where it is reached.

    Counts inputs, results and all slots, but neither workspace inside ops nor fragmentation of the allocator.
    """

    ranks: tuple[int, ...]
    bytes: int
    place: Place | None
    """None for a program without instructions."""

    def to_json(self) -> dict[str, Json]:
        return {
            "ranks": list(self.ranks), "bytes": self.bytes, "place": self.place.to_json() if self.place else None
        }  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """The result of a proof: safe if there is no counterexample."""

    counterexample: Counterexample | None
    peaks: tuple[PeakMemory, ...] = ()
    """One for each class of ranks; empty where the proof failed before memory was counted."""
    collectives: int = 0
    """The number of collectives of the rank that starts most."""
    messages: int = 0
    """The number of messages of the rank that sends most."""
    lanes: tuple[str, ...] = ()
    """The lanes that instructions name."""
    only_under_gloo: bool = False
    """Whether it is safe where each communicator has a queue of its own, and would deadlock under one launch order."""

    @property
    def safe(self) -> bool:
        """Whether the program is proved safe."""
        return self.counterexample is None

    @property
    def peak_bytes(self) -> int:
        """The largest peak of any rank."""
        return max((peak.bytes for peak in self.peaks), default=0)

    def render(self) -> str:
        """The text shown to a person."""
        if self.counterexample is not None:
            return self.counterexample.render()
        ranks = sum(len(peak.ranks) for peak in self.peaks)
        sent = f", {self.messages} messages" if self.messages else ""
        safe = "safe under gloo only" if self.only_under_gloo else "safe"
        lines = [f"{safe}: {ranks} ranks ({len(self.peaks)} distinct), {self.collectives} collectives{sent} on a rank"]
        if self.lanes:
            lines.append(f"  lanes {', '.join(self.lanes)} are ordered wherever they share memory or a group")
        lines += [f"  peak {peak.bytes:,} bytes, {peak.place or _ranks(peak.ranks)}" for peak in self.peaks]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Json]:
        counterexample = self.counterexample
        return {
            "verdict": "safe" if self.safe else "counterexample",
            "counterexample": None if counterexample is None else counterexample.to_json(),
            "peak_bytes": self.peak_bytes, "peaks": [peak.to_json() for peak in self.peaks],
            "collectives": self.collectives, "messages": self.messages, "lanes": list(self.lanes),
            "only_under_gloo": self.only_under_gloo,
        }  # fmt: skip


def place_of(program: Program, path: Path, ranks: Sequence[int]) -> Place:
    """The instruction at the end of `path`, which is not empty; op "return" for a function without instructions."""
    *calls, (name, index) = path
    code = program.functions[name].code
    if not 0 <= index < len(code):
        return Place(tuple(ranks), name, max(index, 0), "return", calls=tuple(calls))
    instruction = code[index]
    known = instruction.loc is not None and 0 <= instruction.loc < len(program.locations)
    location = program.locations[instruction.loc] if known and instruction.loc is not None else None
    axis, peer = instruction.kwargs.get("axis"), instruction.kwargs.get("peer")
    partner = (axis, peer) if isinstance(axis, str) and isinstance(peer, int) else None
    return Place(tuple(ranks), name, index, instruction.op, axes_of(instruction), partner, location, tuple(calls))


def _source(location: Location | None) -> str:
    if location is None:
        return ""
    text = f" at {location.file}:{location.line}" if location.file else ""
    return text + (f" ({location.module})" if location.module else "")


def _ranks(ranks: Sequence[int]) -> str:
    """Ranks as ranges: "ranks 0-3, 6"."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"rank{'' if len(ranks) == 1 else 's'} {text}"
