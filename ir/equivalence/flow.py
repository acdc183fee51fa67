"""The data flow of one run of a module, with all calls inlined: executed operations, and the values between them.

In a pipelined module, a received value depends on the sent one. The entry functions are walked alternately, as their
ranks run; messages between two entries arrive in order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..dialects.schemas import definitions
from ..interpreter.code import Body, Code, Step, refs, used
from ..interpreter.observing import Path
from ..pipelined_module import MICROBATCH, Microbatch, microbatches, select_microbatch
from ..placement import Mesh, Shard
from ..types import TensorType


@dataclass(frozen=True)
class Node:
    """One execution of an operation. Values are numbered in order of creation, arguments first."""

    path: Path
    function: str
    step: Step
    operands: tuple[int, ...]
    """For a receive, the sent value."""
    results: tuple[int, ...]
    microbatch: int | None = None
    """The microbatch it is executed for, in a pipelined module."""

    @property
    def constants(self) -> dict[str, Any]:
        """The constant arguments, by name."""
        if self.step.name not in definitions():
            return {}
        names = [argument.name for argument in definitions()[self.step.name].arguments]
        arguments = {**dict(zip(names, self.step.args, strict=False)), **self.step.kwargs}
        return {name: value for name, value in arguments.items() if not refs(value)}


@dataclass
class Flow:
    """All nodes in dependency order, the types of all values, and the program's arguments and results."""

    arguments: tuple[int, ...] = ()
    results: tuple[int, ...] = ()
    nodes: list[Node] = field(default_factory=list)
    types: list[TensorType | None] = field(default_factory=list)
    makers: dict[int, Node] = field(default_factory=dict)
    """By value, the node that creates it."""


def flow_of(code: Code) -> Flow:
    """The data flow of a module, from its entry functions on."""
    flow = Flow()
    flow.arguments = tuple(_new_values(flow, [port.type for port in code.arguments]))
    sent: SentValues = defaultdict(list)
    walkers = [_Walker(code, flow, sent, entry) for entry in range(len(code.entries))]
    runs = [walker.run() for walker in walkers]
    results_by_entry: dict[int, tuple[int, ...]] = {}
    while len(results_by_entry) < len(runs):
        before = len(flow.nodes)
        for entry in (entry for entry in range(len(runs)) if entry not in results_by_entry):
            try:
                next(runs[entry])
            except StopIteration as done:
                results_by_entry[entry] = done.value
        if len(flow.nodes) == before:
            for walker in walkers:
                walker.is_stuck = True
    flow.results = tuple(
        next(results_by_entry[entry][position] for entry, position in enumerate(port.places) if position is not None)
        for port in code.results
    )
    return flow


SentValues = defaultdict[tuple[int, int], list[int]]
"""By (sending entry, receiving entry), the values sent so far, in order."""
ValueWalk = Generator[None, None, tuple[int, ...]]
"""Yields while a value has not been sent yet; returns the result values."""


@dataclass
class _Walker:
    """Walks one entry function."""

    code: Code
    flow: Flow
    sent: SentValues
    entry: int
    is_stuck: bool = False
    """Whether the entries deadlock; a receive then has no operand."""
    _receive_counts: Counter[tuple[int, int]] = field(default_factory=Counter)
    _open_receives: dict[int, tuple[Node, tuple[int, int], int]] = field(default_factory=dict)
    """By future: the started receive, its (sender, receiver), and its number among theirs."""

    def run(self) -> ValueWalk:
        """Walk the entry function."""
        ports = zip(self.flow.arguments, self.code.arguments, strict=True)
        own = {port.places[self.entry]: number for number, port in ports}
        body = self.code.entries[self.entry]
        start = () if self.code.axis is None else (self.entry,)
        results = yield from self._walk(body, [own[place] for place in range(len(body.arguments))], start, None)
        for node, _, _ in self._open_receives.values():
            self._add(node)
        return results

    def _walk(
        self, body: Body, operands_of_call: Sequence[int], callers: Path, microbatch: Microbatch | None
    ) -> ValueWalk:
        values = dict(zip(body.arguments, operands_of_call, strict=True))
        for index, step in enumerate(body.steps):
            path, operands = (*callers, index), tuple(values[slot] for slot in used(step))
            if step.callee:
                selected = select_microbatch(microbatch, step.turn) if step.microbatch is None else step.microbatch
                results = yield from self._walk(self.code.bodies[step.callee], operands, path, selected)
            else:
                types = [stage_type(self.code, body.types[slot]) for slot in step.out]
                results = tuple(_new_values(self.flow, types))
                selected = select_microbatch(microbatch, step.turn)
                single = None if isinstance(selected, tuple) else selected
                yield from self._step(Node(path, body.name, step, operands, results, single))
            values.update(zip(step.out, results, strict=True))
        return tuple(values[slot] for slot in body.results)

    def _step(self, node: Node) -> Generator[None, None, None]:
        name, args = node.step.name, node.step.args
        if name == "comm.wait" and node.operands[0] in self._open_receives:
            receive, source, number = self._open_receives.pop(node.operands[0])
            self._add((yield from self._received(receive, source, number)))
        elif name.startswith("comm.receive") and args[0] == self.code.axis:
            source = (int(args[1]), self.entry)
            number = self._receive_counts[source]
            self._receive_counts[source] += 1
            if name == "comm.receive_start":
                self._open_receives[node.results[0]] = (node, source, number)
                return
            node = yield from self._received(node, source, number)
        elif name == "comm.send" and args[1] == self.code.axis:
            self.sent[self.entry, int(args[2])].append(node.operands[0])
        self._add(node)

    def _received(self, node: Node, source: tuple[int, int], number: int) -> Generator[None, None, Node]:
        """The node with the sent value as its operand; yields until it is sent."""
        while len(self.sent[source]) <= number and not self.is_stuck:
            yield
        return replace(node, operands=tuple(self.sent[source][number : number + 1]))

    def _add(self, node: Node) -> None:
        self.flow.nodes.append(node)
        self.flow.makers.update(dict.fromkeys(node.results, node))


def stage_type(code: Code, type_: TensorType | None) -> TensorType | None:
    """The type of one microbatch on the ranks of a stage; unchanged for a module without a pipeline axis."""
    if type_ is None or code.axis is None:
        return type_
    return one_microbatch_type(type_.without_axis(code.axis), code.mesh)


def one_microbatch_type(type_: TensorType, mesh: Mesh) -> TensorType:
    """The type of one microbatch of a tensor, without the microbatch axis."""
    sharded_dims = {
        placement.dim for axis, placement in type_.placement if axis == MICROBATCH and isinstance(placement, Shard)
    }
    count = microbatches(mesh)
    extents = type_.extents and tuple(n // count if dim in sharded_dims else n for dim, n in enumerate(type_.extents))
    return replace(type_.without_axis(MICROBATCH), extents=extents)


def _new_values(flow: Flow, types: Sequence[TensorType | None]) -> Iterator[int]:
    for type_ in types:
        flow.types.append(type_)
        yield len(flow.types) - 1
