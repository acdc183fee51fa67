"""The communication of one step of a program, without running it: each collective and send, its count and bytes.

The types of slots are those that the program states; no op runs. A function is walked once for all its calls, so the
cost does not grow with depth. The entries of a pipeline's stages are walked in turns, as messages allow. What depends
on a tangent, also through messages, belongs to the backward.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ...costs.communication import ring_bytes
from ...ir.collectives import COLLECTIVES, collective, synchronous
from ...runtime.errors import ProgramError
from ...runtime.program.entries import Entry
from ...runtime.program.program import Program
from ...runtime.program.records import Instruction, Location
from ...runtime.program.validate import ENTRY
from ...runtime.prover import with_derived_types
from ...runtime.prover.values import Refuted

_KEEPS_GRADIENT = ("comm.", "rank.", "aten.add.Tensor")
"""Ops whose result is still a gradient if an operand is one."""
SEND = "send"
"""The kind of a message to another stage."""


@dataclass(frozen=True)
class Site:
    """A collective or a send of the program: its place, and its bytes each time."""

    function: str
    index: int
    backward: bool
    kind: str
    """all_reduce, all_gather, reduce_scatter, all_to_all or send."""
    axes: tuple[str, ...]
    tensor_bytes: int
    """The larger of operand and result, on one rank."""
    sent_bytes: int
    """The bytes that a rank sends: a whole message, or with a ring (n-1)/n of the tensor, twice for an all_reduce."""
    stage: int | None = None
    """In a pipeline: the stage that runs it."""
    peer: int | None = None
    """For a send: the stage that receives it."""


Messages = defaultdict[tuple[int, int], list[bool]]
"""For each message between two stages (sender, receiver), in order: whether it belongs to the backward."""
Traffic = Mapping[Site, int]
"""How often a rank runs each collective or send in one step."""


def traffic_of(program: Program) -> Traffic:
    """Every collective and send of one step (forward and, in train mode, backward), in execution order."""
    walk = _Walk(stating_types(program))
    return walk.main() if program.pipeline is None else walk.stages()


def stating_types(program: Program) -> Program:
    """The program itself where it states the types of its slots, else with those that its ops give.

    Raises ProgramError E0306 where an op cannot take its operands.
    """
    if program.states_types:
        return program
    try:
        return with_derived_types(program)
    except Refuted as error:
        raise ProgramError("E0306", f"the program is malformed: {error.message}", help="compile it again") from None


def place_of(program: Program, site: Site) -> Location:
    """The source place of a collective or send; empty where it has none."""
    loc = program.functions[site.function].code[site.index].loc
    return Location("", 0) if loc is None else program.locations[loc]


def gradients_from(program: Program, site: Site) -> tuple[str, ...]:
    """The parameters whose gradients a collective reduces: sums and collectives alone lead from its result to them."""
    entry = program.entries[site.stage or 0]
    if site.function != entry.name or site.kind == SEND:
        return ()
    code = program.functions[entry.name].code
    names: dict[int, list[str]] = {}
    for output in entry.gradients:
        names.setdefault(output.slot, []).append(output.name)
    gradients: list[str] = []
    slots = set(code[site.index].writes())
    for instruction in code[site.index + 1 :]:
        if instruction.op.startswith(_KEEPS_GRADIENT) and slots.intersection(instruction.reads()):
            slots.update(instruction.writes())
        else:
            slots.difference_update(instruction.writes())
    for slot in sorted(slots):
        gradients += names.get(slot, [])
    return tuple(gradients)


class _Walk:
    """Walks the instructions of one program that states types."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._mesh = program.mesh
        self._known: dict[str, Counter[Site]] = {}

    def main(self) -> Traffic:
        """The traffic of a program without a pipeline."""
        main = self._program.functions[ENTRY]
        split = len(main.code) if main.backward_at is None else main.backward_at
        traffic = self._code(ENTRY, range(split))
        for site, count in self._code(ENTRY, range(split, len(main.code))).items():
            traffic[replace(site, backward=True)] += count
        return traffic

    def stages(self) -> Traffic:
        """The traffic of all stages; their entries are walked in turns, each until it waits for a message."""
        sent: Messages = defaultdict(list)
        traffic: Counter[Site] = Counter()
        runs = [self._stage(stage, entry, sent, traffic) for stage, entry in enumerate(self._program.entries)]
        while runs:
            before = sum(map(len, sent.values())), len(runs)
            runs = [run for run in runs if next(run, None) is not None]
            if (sum(map(len, sent.values())), len(runs)) == before:
                raise ProgramError("E0306", "the program is malformed: its stages deadlock")
        return traffic

    def _stage(self, stage: int, entry: Entry, sent: Messages, traffic: Counter[Site]) -> Iterator[bool]:
        """Walk one entry; yields while it waits for a message that was not sent yet."""
        backward_slots = {tangent.slot for tangent in entry.inputs if tangent.kind == "tangent"}
        messages: dict[int, tuple[int, int]] = {}
        received: Counter[int] = Counter()
        for index, instruction in enumerate(self._program.functions[entry.name].code):
            reads = instruction.reads()
            is_backward = not backward_slots.isdisjoint(reads)
            if instruction.op == "comm.wait" and reads[0] in messages:
                source, number = messages.pop(reads[0])
                while len(sent[source, stage]) <= number:
                    yield True
                is_backward = sent[source, stage][number]
            sites = self._code(entry.name, range(index, index + 1))
            traffic.update({replace(site, backward=is_backward, stage=stage): count for site, count in sites.items()})
            (backward_slots.update if is_backward else backward_slots.difference_update)(instruction.writes())
            if instruction.op == "comm.send":
                sent[stage, _integer(instruction.kwargs["peer"])].append(is_backward)
            elif instruction.op == "comm.receive_start":
                source = _integer(instruction.kwargs["peer"])
                messages.update(dict.fromkeys(instruction.writes(), (source, received[source])))
                received[source] += 1

    def _code(self, name: str, indices: range) -> Counter[Site]:
        """The traffic of some instructions of a function, and of what they call."""
        traffic: Counter[Site] = Counter()
        code = self._program.functions[name].code
        for index in indices:
            instruction = code[index]
            if instruction.op == "call":
                traffic.update(self._function(str(instruction.args[0])))
            elif instruction.op == "comm.send":
                traffic[self._send(instruction, name, index)] += 1
            elif collective(instruction.op) is not None:
                traffic[self._collective(instruction, name, index)] += 1
        return traffic

    def _function(self, name: str) -> Counter[Site]:
        if name not in self._known:
            self._known[name] = self._code(name, range(len(self._program.functions[name].code)))
        return self._known[name]

    def _collective(self, instruction: Instruction, name: str, index: int) -> Site:
        axes: tuple[str, ...] = tuple(instruction.kwargs["axes"])  # type: ignore[arg-type]  # validated
        known = COLLECTIVES[synchronous(instruction.op)]
        reads = instruction.reads()[:1] if known.counts else instruction.reads()
        sides = [sum(self._bytes(name, slot) for slot in slots) for slots in (reads, instruction.writes())]
        tensor_bytes = min(sides) if known.counts else max(sides)  # the smaller one holds the even share of rows
        sent = ring_bytes(known.kind, tensor_bytes, self._mesh.size(axes))
        return Site(name, index, False, known.kind, axes, tensor_bytes, sent)

    def _send(self, instruction: Instruction, name: str, index: int) -> Site:
        axes, peer = (str(instruction.kwargs["axis"]),), _integer(instruction.kwargs["peer"])
        [slot] = instruction.reads()
        size = self._bytes(name, slot)
        return Site(name, index, False, SEND, axes, size, size, peer=peer)

    def _bytes(self, function: str, slot: int) -> int:
        type_ = self._program.type_of(function, slot)
        if type_ is None:
            raise ProgramError("E0306", f"the program is malformed: slot {slot} of '{function}' has no type")
        return type_.bytes


def _integer(value: object) -> int:
    assert isinstance(value, int), "validated"
    return value
