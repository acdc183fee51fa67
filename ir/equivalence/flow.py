"""What a module does in one run, with every call entered: its operations one by one, and the values between them.

Where stages have entries of their own, a value that is received is from the one that is sent: the entries are followed
in turns, as their ranks run, and what one sends first the other takes first.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..dialects.schemas import definitions
from ..interpreter.code import Body, Code, Step, refs, used
from ..interpreter.observing import Path
from ..pipelined_module import MICROBATCH, Microbatch, microbatches, of_turn
from ..placement import Mesh, Shard
from ..types import TensorType


@dataclass(frozen=True)
class Node:
    """One execution of one operation. Values are numbered in the order in which they are made, arguments first."""

    path: Path
    function: str
    step: Step
    operands: tuple[int, ...]
    """Of a receive, what is sent."""
    results: tuple[int, ...]
    microbatch: int | None = None
    """The one that it is done for, where each is a turn of the ranks."""

    @property
    def constants(self) -> dict[str, Any]:
        """Its arguments that are no values, by name."""
        if self.step.name not in definitions():
            return {}
        names = [argument.name for argument in definitions()[self.step.name].arguments]
        given = {**dict(zip(names, self.step.args, strict=False)), **self.step.kwargs}
        return {name: value for name, value in given.items() if not refs(value)}


@dataclass
class Flow:
    """All nodes, each after those whose values it reads; the types of all values; what goes in and comes out."""

    arguments: tuple[int, ...] = ()
    """Of the whole program, as the next."""
    results: tuple[int, ...] = ()
    nodes: list[Node] = field(default_factory=list)
    types: list[TensorType | None] = field(default_factory=list)
    makers: dict[int, Node] = field(default_factory=dict)


def flow_of(code: Code) -> Flow:
    """Follow a module from its entries on."""
    flow = Flow()
    flow.arguments = tuple(_numbers(flow, [port.type for port in code.arguments]))
    mail: Mail = defaultdict(list)
    walkers = [_Walker(code, flow, mail, entry) for entry in range(len(code.entries))]
    runs = [walker.run() for walker in walkers]
    gives: dict[int, tuple[int, ...]] = {}
    while len(gives) < len(runs):
        before = len(flow.nodes)
        for entry in (entry for entry in range(len(runs)) if entry not in gives):
            try:
                next(runs[entry])
            except StopIteration as done:
                gives[entry] = done.value
        if len(flow.nodes) == before:
            for walker in walkers:
                walker.is_stuck = True
    flow.results = tuple(
        next(gives[entry][place] for entry, place in enumerate(port.places) if place is not None)
        for port in code.results
    )
    return flow


Mail = defaultdict[tuple[int, int], list[int]]
"""By entry that sends and entry that receives: the values sent so far, in order."""
Turns = Generator[None, None, tuple[int, ...]]
"""Stops where a value has not been sent yet; gives the values that come out."""


@dataclass
class _Walker:
    """The ranks that begin at one entry."""

    code: Code
    flow: Flow
    mail: Mail
    entry: int
    is_stuck: bool = False
    """Whether ranks wait for ever; what they wait for is from nowhere then."""
    _asked: Counter[tuple[int, int]] = field(default_factory=Counter)
    _started: dict[int, tuple[Node, tuple[int, int], int]] = field(default_factory=dict)
    """By future: a receive that was started, whom from, and which of theirs it is."""

    def run(self) -> Turns:
        """Follow the entry's function."""
        ports = zip(self.flow.arguments, self.code.arguments, strict=True)
        own = {port.places[self.entry]: number for number, port in ports}
        body = self.code.entries[self.entry]
        start = () if self.code.axis is None else (self.entry,)
        results = yield from self._walk(body, [own[place] for place in range(len(body.arguments))], start, None)
        for node, _, _ in self._started.values():
            self._add(node)
        return results

    def _walk(self, body: Body, given: Sequence[int], callers: Path, microbatch: Microbatch | None) -> Turns:
        values = dict(zip(body.arguments, given, strict=True))
        for at, step in enumerate(body.steps):
            path, operands = (*callers, at), tuple(values[slot] for slot in used(step))
            if step.callee:
                turn = of_turn(microbatch, step.turn) if step.microbatch is None else step.microbatch
                results = yield from self._walk(self.code.bodies[step.callee], operands, path, turn)
            else:
                types = [of_one_microbatch(self.code, body.types[slot]) for slot in step.out]
                results = tuple(_numbers(self.flow, types))
                turn = of_turn(microbatch, step.turn)
                one = None if isinstance(turn, tuple) else turn
                yield from self._step(Node(path, body.name, step, operands, results, one))
            values.update(zip(step.out, results, strict=True))
        return tuple(values[slot] for slot in body.results)

    def _step(self, node: Node) -> Generator[None, None, None]:
        name, args = node.step.name, node.step.args
        if name == "comm.wait" and node.operands[0] in self._started:
            receive, source, number = self._started.pop(node.operands[0])
            self._add((yield from self._received(receive, source, number)))
        elif name.startswith("comm.receive") and args[0] == self.code.axis:
            source = (int(args[1]), self.entry)
            number = self._asked[source]
            self._asked[source] += 1
            if name == "comm.receive_start":
                self._started[node.results[0]] = (node, source, number)
                return
            node = yield from self._received(node, source, number)
        elif name == "comm.send" and args[1] == self.code.axis:
            self.mail[self.entry, int(args[2])].append(node.operands[0])
        self._add(node)

    def _received(self, node: Node, source: tuple[int, int], number: int) -> Generator[None, None, Node]:
        """The node with what was sent as its operand, once it was."""
        while len(self.mail[source]) <= number and not self.is_stuck:
            yield
        return replace(node, operands=tuple(self.mail[source][number : number + 1]))

    def _add(self, node: Node) -> None:
        self.flow.nodes.append(node)
        self.flow.makers.update(dict.fromkeys(node.results, node))


def of_one_microbatch(code: Code, type_: TensorType | None) -> TensorType | None:
    """The type of what the ranks of a stage hold of one microbatch, where each is a turn of theirs."""
    if type_ is None or code.axis is None:
        return type_
    return part_type(replace(type_, placement=tuple(p for p in type_.placement if p[0] != code.axis)), code.mesh)


def part_type(type_: TensorType, mesh: Mesh) -> TensorType:
    """The type of one microbatch's part of a tensor, in which time is no axis."""
    cut = {placement.dim for axis, placement in type_.placement if axis == MICROBATCH and isinstance(placement, Shard)}
    here = tuple(each for each in type_.placement if each[0] != MICROBATCH)
    turns = microbatches(mesh)
    extents = type_.extents and tuple(n // turns if dim in cut else n for dim, n in enumerate(type_.extents))
    return replace(type_, placement=here, extents=extents)


def _numbers(flow: Flow, types: Sequence[TensorType | None]) -> Iterator[int]:
    for type_ in types:
        flow.types.append(type_)
        yield len(flow.types) - 1
