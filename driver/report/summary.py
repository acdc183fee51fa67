"""What a module or a program does in one step, counted, so that two can be compared: `stretto diff`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ...runtime.program.program import Program
from ...runtime.program.records import Function
from ...runtime.prover import prove
from .traffic import traffic_of

Place = tuple[str, int, str]
"""File, line and module path."""
Link = tuple[str, tuple[str, ...]]
"""A kind of collective, and the axes that it is over."""


@dataclass
class Communication:
    """Collectives of one kind over the same axes, in one step."""

    count: int = 0
    tensor_bytes: int = 0
    """Of all their tensors on one rank, each the larger of what goes in and comes out."""
    sent_bytes: int = 0
    """What a rank sends when each is done as a ring."""

    def add(self, count: int, tensor_bytes: int, sent_bytes: int) -> None:
        """Add so many alike."""
        self.count += count
        self.tensor_bytes += count * tensor_bytes
        self.sent_bytes += count * sent_bytes


@dataclass
class Summary:
    """What runs in one step on one rank; what a function does counts once for each call.

    Where stages have entries of their own, what runs on one rank of each together; its peak is the largest.
    """

    name: str
    content: object
    """Two summaries with equal content are of the same module or program, whatever its source lines."""
    ops: Counter[str] = field(default_factory=Counter)
    places: Counter[Place] = field(default_factory=Counter)
    """How many operations each line of the model has."""
    communication: dict[Link, Communication] = field(default_factory=dict)
    peak_bytes: int | None = None
    """The most that is live on a rank at once; None where that cannot be proved."""
    stages: int = 1


def program_summary(folder: str) -> Summary:
    """The summary of a program folder. Errors: ProgramError E0301 to E0306."""
    program = Program.load(folder)
    bodies = {name: _instructions(function) for name, function in program.functions.items()}
    made = Summary(folder, (program.manifest.mesh, program.inputs, program.outputs, bodies))
    made.stages = len(program.entries)
    for name, times in _calls(program).items():
        for each in program.functions[name].code:
            if each.op == "call":
                continue
            made.ops[each.op] += times
            at = None if each.loc is None else program.locations[each.loc]
            made.places[(at.file, at.line, at.module) if at else ("", 0, "")] += times
    for site, count in traffic_of(program).items():
        link = made.communication.setdefault((site.kind, site.axes), Communication())
        link.add(count, site.tensor_bytes, site.sent_bytes)
    verdict = prove(program)
    made.peak_bytes = verdict.peak_bytes if verdict.safe else None
    return made


def _instructions(function: Function) -> object:
    """A function without the numbers of its source lines."""
    code = [(each.op, each.args, each.kwargs, each.out, each.free) for each in function.code]
    return (function.slots, function.arguments, function.results, code, function.backward_at)


def _calls(program: Program) -> Counter[str]:
    """How often each function runs in a step."""
    functions = program.functions
    found: Counter[str] = Counter()

    def enter(name: str, times: int) -> None:
        found[name] += times
        called = Counter(str(each.args[0]) for each in functions[name].code if each.op == "call")
        for callee, calls in called.items():
            enter(callee, times * calls)

    for entry in program.entries:
        enter(entry.name, 1)
    return found
