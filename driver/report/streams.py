"""The stream programs of all ranks, as recorded without a GPU, and what their proof says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...backends.cuda.agreement import prove
from ...backends.cuda.proof import StreamFault
from ...backends.cuda.recording import recorded
from ...backends.cuda.stream_log import Allocate, BeginCapture, EndCapture, Entry, Free, HostWork, Launch, Record, Wait
from ...runtime.errors import ProgramError, instruction_name, source_span
from ...runtime.implementations.binding import bindings
from ...runtime.program.arguments import Json
from ...runtime.program.program import Program
from ..text.console import count_text, heading, place_text, say, size_text, table

_TARGET = "cuda"
_SHOWN = 60
"""Pieces of work that are listed as text; --json has all."""
_MOST_RANKS = 64
"""The most ranks whose streams are proved together: seconds."""


@dataclass(frozen=True)
class Work:
    """A piece of work on a stream: its number there, and the works of other streams that it comes behind."""

    stream: str
    number: int
    op: str
    behind: tuple[tuple[str, int], ...]
    place: str
    in_graph: int
    """The number of the graph that holds it; 0: none."""

    def to_json(self) -> Json:
        return {
            "stream": self.stream, "number": self.number, "op": self.op, "place": self.place, "graph": self.in_graph,
            "behind": [list(each) for each in self.behind],
        }  # fmt: skip


@dataclass(frozen=True)
class StreamProgram:
    """What one rank issues in a step."""

    rank: int
    ranks: int
    works: tuple[Work, ...]
    peaks: tuple[tuple[str, int], ...]
    """By stream: the most bytes of its blocks that are allocated at once, without inputs."""
    host_works: int
    graphs: int

    def to_json(self) -> dict[str, Json]:
        return {
            "rank": self.rank, "proved": True, "graphs": self.graphs, "host_works": self.host_works,
            "peak_bytes": dict(self.peaks), "works": [work.to_json() for work in self.works],
        }  # fmt: skip


def stream_program(program: Program, rank: int, *, graphs: bool) -> StreamProgram:
    """The stream program of a rank of the mesh, once that of all ranks is proved.

    A function for which this process has a kernel for the target cuda is one piece of work, others run their bodies.
    Raises ProgramError E0733 to E0736 for what the proof finds, E0726 for more ranks than `_MOST_RANKS`.
    """
    ranks = program.mesh.ranks
    if ranks > _MOST_RANKS:
        raise ProgramError(
            "E0726",
            f"the streams of {ranks} ranks are too many to be proved together",
            expected=f"at most {_MOST_RANKS}",
            help="compile the model for a mesh with smaller axes: every rank of a stage issues the same",
        )
    kernels = {name for name, bound in bindings(program, _TARGET).items() if bound.kernel is not None}
    logs = [recorded(program, each, kernels=kernels, capture=graphs) for each in range(ranks)]
    try:
        prove(logs)
    except StreamFault as fault:
        raise _error(program, fault) from None
    return _summary(program, rank, logs[rank])


def show_streams(found: StreamProgram) -> None:
    """Print a stream program."""
    streams = dict.fromkeys(work.stream for work in found.works)
    counts = ", ".join(f"{name} {sum(work.stream == name for work in found.works)}" for name in streams)
    heading(f"Streams of rank {found.rank} on a GPU, as recorded without one")
    say(f"  work     {counts}")
    say(f"  memory   {', '.join(f'{name} {size_text(peak)}' for name, peak in found.peaks)} (beside inputs)")
    if found.graphs:
        say(f"  graphs   {count_text(found.graphs, 'graph')}, {found.host_works} works of the host between")
    say(f"  proved   for all {count_text(found.ranks, 'rank')}: reads, memory, communicators, graphs")
    awaited = {place for work in found.works for place in work.behind}
    meeting = [work for work in found.works if work.behind or (work.stream, work.number) in awaited]
    heading("Where streams wait for each other")
    rows = [
        (f"{work.stream} {work.number}", work.op, ", ".join(f"{s} {n}" for s, n in work.behind), work.place)
        for work in meeting[:_SHOWN]
    ]
    table(("work", "op", "behind", "place"), rows)
    left = f"{len(meeting) - _SHOWN} more, " if len(meeting) > _SHOWN else ""
    say(f"  ({left}and {len(found.works) - len(meeting)} works that wait for no other stream; --json lists all)")


@dataclass
class _Reader:
    """Reads a log: numbers works by stream, and finds for each wait the work that its event marks."""

    numbers: dict[str, int] = field(default_factory=dict)
    events: dict[int, tuple[str, int]] = field(default_factory=dict)
    waited: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    graph: int = 0
    graphs: int = 0

    def work(self, entry: Launch | HostWork, place: str) -> Work:
        stream = entry.stream
        number = self.numbers[stream] = self.numbers.get(stream, 0) + 1
        behind = tuple(dict.fromkeys(mark for mark in self.waited.pop(stream, []) if mark[1]))
        name = entry.op.removeprefix("aten.").removesuffix(".default")
        if entry.communication is not None and len(entry.communication.members) > 1:
            name = f"{name.removeprefix('comm.').removesuffix('_start')} {entry.communication.communicator}"
        return Work(stream, number, name, behind, place, self.graph)

    def other(self, entry: Entry) -> None:
        match entry:
            case Record(stream, event):
                self.events[event] = stream, self.numbers.get(stream, 0)
            case Wait(stream, event):
                self.waited.setdefault(stream, []).append(self.events[event])
            case BeginCapture():
                self.graphs += 1
                self.graph = self.graphs
            case EndCapture():
                self.graph = 0


def _summary(program: Program, rank: int, log: Sequence[Entry]) -> StreamProgram:
    reader = _Reader()
    works: list[Work] = []
    sizes: dict[int, tuple[str, int]] = {}
    held: dict[str, int] = {}
    peaks: dict[str, int] = {}
    for entry in log:
        match entry:
            case Launch() | HostWork():
                works.append(reader.work(entry, _place(program, entry)))
            case Allocate() if not entry.static:
                sizes[entry.block] = entry.stream, entry.nbytes
                held[entry.stream] = held.get(entry.stream, 0) + entry.nbytes
                peaks[entry.stream] = max(peaks.get(entry.stream, 0), held[entry.stream])
            case Free(block):
                stream, nbytes = sizes.pop(block)
                held[stream] -= nbytes
            case _:
                reader.other(entry)
    hosts = sum(isinstance(entry, HostWork) for entry in log)
    return StreamProgram(rank, program.mesh.ranks, tuple(works), tuple(sorted(peaks.items())), hosts, reader.graphs)


def _place(program: Program, entry: Launch | HostWork) -> str:
    """The innermost place that says a module or a line of source."""
    for function, index in reversed(entry.path):
        loc = program.functions[function].code[index].loc
        if loc is not None:
            location = program.locations[loc]
            return f"{location.module} {place_text(location.file, location.line)}".strip()
    return ""


def _error(program: Program, fault: StreamFault) -> ProgramError:
    """The fault, with the instruction that it is about."""
    if not fault.path:
        return ProgramError(fault.code, fault.message, help=_HELP)
    function, index = fault.path[-1]
    instruction = program.functions[function].code[index]
    location = None if instruction.loc is None else program.locations[instruction.loc]
    return ProgramError(
        fault.code,
        f"{instruction_name(instruction.op, index, function)}: {fault.message}",
        span=None if location is None else source_span(location.file, location.line),
        help=_HELP,
    )


_HELP = "run `stretto verify` on the program; if it is proved there, this is an error of Stretto: please report it"
