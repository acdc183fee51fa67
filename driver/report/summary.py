"""Counts of one step of a module or program, to be compared by `stretto diff`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ...runtime.named_entries.program_set import load_entry
from ...runtime.program.program import Program
from ...runtime.program.records import Function, Instruction
from ...runtime.prover import Types, prove
from .traffic import stating_types, traffic_of

Place = tuple[str, int, str]
"""File, line and module path."""
Link = tuple[str, tuple[str, ...]]
"""A kind of collective, and its axes."""


@dataclass
class Communication:
    """Collectives of one kind over the same axes, in one step."""

    count: int = 0
    tensor_bytes: int = 0
    """The sum of their tensors on one rank; of operand and result the larger counts."""
    sent_bytes: int = 0
    """The bytes that a rank sends with ring algorithms."""

    def add(self, count: int, tensor_bytes: int, sent_bytes: int) -> None:
        """Add `count` collectives of equal size."""
        self.count += count
        self.tensor_bytes += count * tensor_bytes
        self.sent_bytes += count * sent_bytes


@dataclass
class Summary:
    """Counts of one step on one rank; a function's body counts once for each call, one with a kind as one operation.

    In a pipeline, sums over one rank of each stage; the peak is the largest of them.
    """

    name: str
    content: object
    """Equal for modules or programs that differ at most in source lines."""
    ops: Counter[str] = field(default_factory=Counter)
    places: Counter[Place] = field(default_factory=Counter)
    """The number of operations of each source line."""
    communication: dict[Link, Communication] = field(default_factory=dict)
    peak_bytes: int | None = None
    """The peak memory of a rank; None where it cannot be proved."""
    stages: int = 1


def program_summary(folder: str, entry: str | None = None) -> Summary:
    """The summary of an entry of a program folder. Errors: ProgramError E0301 to E0306, E0319, E0316."""
    program = load_entry(folder, entry)
    bodies = {name: _instructions(function) for name, function in program.functions.items()}
    summary = Summary(folder, (program.manifest.mesh, program.inputs, program.outputs, bodies))
    summary.stages = len(program.entries)
    for name, times in _call_counts(program).items():
        for instruction in program.functions[name].code:
            kind = _kind_called(program, instruction)
            if instruction.op == "call" and not kind:
                continue
            summary.ops[kind or instruction.op] += times
            place = None if instruction.loc is None else program.locations[instruction.loc]
            summary.places[(place.file, place.line, place.module) if place else ("", 0, "")] += times
    for site, count in traffic_of(program).items():
        link = summary.communication.setdefault((site.kind, site.axes), Communication())
        link.add(count, site.tensor_bytes, site.sent_bytes)
    verdict = prove(stating_types(program), types=Types.STATED)
    summary.peak_bytes = verdict.peak_bytes if verdict.safe else None
    return summary


def _kind_called(program: Program, instruction: Instruction) -> str:
    """The kind of the function that an instruction calls; empty for another one."""
    kind = program.functions[str(instruction.args[0])].kind if instruction.op == "call" else None
    return "" if kind is None else kind.name


def _instructions(function: Function) -> object:
    """A function without source locations."""
    code = [
        (instruction.op, instruction.args, instruction.kwargs, instruction.out, instruction.free, instruction.lane)
        for instruction in function.code
    ]
    return (function.slots, function.arguments, function.results, code, function.backward_at, function.kind)


def _call_counts(program: Program) -> Counter[str]:
    """How often each function runs in a step."""
    functions = program.functions
    counts: Counter[str] = Counter()

    def enter(name: str, times: int) -> None:
        counts[name] += times
        called = Counter(str(instruction.args[0]) for instruction in functions[name].code if instruction.op == "call")
        for callee, calls in called.items():
            if functions[callee].kind is None:
                enter(callee, times * calls)

    for entry in program.entries:
        enter(entry.name, 1)
    return counts
