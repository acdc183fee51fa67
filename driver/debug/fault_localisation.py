"""Fault localisation: the first operation with a wrong value in the module after a pass.

Both modules, before and after the pass, run on the same inputs, and every value is traced as a global tensor
(`ir/equivalence/trace.py`). A value is *right* if the module before computed it too (`known_values.py`), or if a right
value is computed from it. The faulty operation has right operands and a wrong result, and a result of the program
depends on it. Values that are neither right nor wrong are *unknown*: constants, and values of one rank such as the
offset of its chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

import torch

from ...ir.collectives import BLOCKING, WAIT
from ...ir.equivalence.flow import Node
from ...ir.equivalence.reconstruction import Part
from ...ir.equivalence.trace import Trace
from ...ir.interpreter.code import UNPACK
from ...ir.interpreter.observing import Path
from .known_values import Values


class Status(StrEnum):
    """Whether a value is right."""

    RIGHT = "right"
    WRONG = "wrong"
    """The other module does not compute it."""
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Suspects:
    """The operations that may be faulty; without any, all values are right and `main` returns them in a wrong order."""

    first: Node | None
    others: tuple[Node, ...] = ()
    """Other candidates: a correct rewrite too may compute values that the other module does not."""


@dataclass
class Statuses:
    """The status of every value of a trace, compared with the values of another trace."""

    trace: Trace
    other: Values
    wrong_results: frozenset[int]
    by_value: dict[int, Status] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_value.update(dict.fromkeys(self.trace.flow.arguments, Status.RIGHT))
        for node in self.trace.flow.nodes:
            for number in node.results:
                self.by_value[number] = self._status(node, number)
        for node in reversed(self.trace.flow.nodes):
            if self._proves(node):
                self.by_value.update(
                    (number, Status.RIGHT)
                    for number in self.operands(node)
                    if self.by_value[number] is not Status.RIGHT and number not in self.wrong_results
                )

    def operands(self, node: Node) -> Iterator[int]:
        """The tensors that a node reads, through lists and futures."""
        for number in node.operands:
            if self._is_traced(number):
                yield number
            elif number in self.trace.flow.makers:
                yield from self.operands(self.trace.flow.makers[number])

    def _status(self, node: Node, number: int) -> Status:
        if not self._is_traced(number):
            return Status.UNKNOWN
        if number in self.wrong_results and number in self.trace.recognised:
            return Status.WRONG  # a result of the program must lie as its type says
        if self.other.holds(self.trace, number):
            return Status.RIGHT
        operands = list(self.operands(node))
        known = [self.by_value[operand] for operand in operands]
        if node.step.name == "comm.offset":
            return Status.UNKNOWN if node.step.args[1] in self._legal_chunks(node.step.args[0]) else Status.WRONG
        if not self._is_floating(number):
            is_flags = self._is_distinctive_flags(number) and number not in self.trace.diverged
            return Status.WRONG if is_flags and all(s is Status.RIGHT for s in known) else Status.UNKNOWN
        if all(status is Status.UNKNOWN for status in known) and not (known and _communicates(node)):
            return Status.UNKNOWN
        is_own = Status.UNKNOWN in known
        return Status.UNKNOWN if number in self.trace.diverged and is_own and not _communicates(node) else Status.WRONG

    def _is_floating(self, number: int) -> bool:
        type_ = self.trace.flow.types[number]
        return type_ is not None and type_.dtype.is_floating_point

    def _is_traced(self, number: int) -> bool:
        return number in self.trace.fingerprints

    def _proves(self, node: Node) -> bool:
        """Whether right results of this operation prove that its operands are right."""
        seen = [number for number in node.results if self._is_traced(number)]
        return (
            "_like" not in node.step.name
            and not _loses(node.step.name)
            and all(self.by_value[number] is Status.RIGHT for number in seen)
            and any(self._is_distinctive(number) for number in seen)
        )

    def _is_distinctive(self, number: int) -> bool:
        type_, fingerprint = self.trace.flow.types[number], self.trace.fingerprints.get(number)
        if type_ is None or fingerprint is None or type_.dtype is torch.bool:
            return False
        return not fingerprint.is_constant or (fingerprint.count == 1 and fingerprint.size not in (0, 1))

    def _is_distinctive_flags(self, number: int) -> bool:
        type_, fingerprint = self.trace.flow.types[number], self.trace.fingerprints.get(number)
        return type_ is not None and type_.dtype is torch.bool and not (fingerprint is None or fingerprint.is_constant)

    def _legal_chunks(self, axes: Sequence[str]) -> set[int]:
        """The chunks into which axes may divide a dim of the other module; 1 gives a coordinate."""
        size = self.trace.grid.size(axes) if self.trace.grid.has(axes) else 0
        types = (type_ for type_ in self.other.trace.flow.types if type_ is not None)
        return {1, *(-(-extent // size) for type_ in types for extent in type_.shape if size)}

    @cached_property
    def slice(self) -> list[Node]:
        """The nodes that lead to wrong results through values that are not right, in execution order."""
        wanted = set(self.wrong_results)
        nodes = []
        for node in reversed(self.trace.flow.nodes):
            if any(number in wanted and self.by_value[number] is not Status.RIGHT for number in node.results):
                nodes.append(node)
                wanted.update(self.operands(node))
        return nodes[::-1]


def suspects(statuses: Statuses) -> Suspects:
    """The operation with the first wrong value, and the other candidates."""
    wrong = [node for node in statuses.slice if any(statuses.by_value[n] is Status.WRONG for n in node.results)]
    starts = [n for n in wrong if all(statuses.by_value[o] is not Status.WRONG for o in statuses.operands(n))]
    if not starts:
        unknown = tuple(statuses.slice)
        return Suspects(unknown[0], unknown[1:]) if unknown else Suspects(None)
    first = _unreduced(statuses, starts[0])
    return Suspects(_origin(statuses.trace, first), tuple(_others(statuses, starts, wrong)))


def _unreduced(statuses: Statuses, node: Node) -> Node:
    """Where ranks compute with their own terms of a sum, the first operation on them: a reduction is missing there."""
    trace = statuses.trace
    while not _communicates(node):
        terms = [number for number in statuses.operands(node) if trace.recognised.get(number) is Part.TERM]
        makers = [maker for number in terms if (maker := trace.flow.makers.get(number)) is not None]
        inner = [m for m in makers if any(trace.recognised.get(n) is Part.TERM for n in statuses.operands(m))]
        if not inner:
            break
        node = inner[0]
    return idle_before(statuses, node) or node


def idle_before(statuses: Statuses, node: Node) -> Node | None:
    """An operation before a wrong one, through values that are not known to be right, that does nothing.

    It adds 0 or multiplies by 1, or compares what is always on one side: its constant should be another.
    """
    trace, pending, seen = statuses.trace, [node], set[Path]()
    while pending:
        for number in statuses.operands(pending.pop(0)):
            maker = trace.flow.makers.get(number)
            if maker is None or maker.path in seen:
                continue
            seen.add(maker.path)
            if _is_idle(trace, maker):
                return maker
            if statuses.by_value[number] is Status.UNKNOWN:
                pending.append(maker)
    return None


def _is_idle(trace: Trace, node: Node) -> bool:
    """Whether an arithmetic operation with a constant gives its operand, or a comparison with one is one-sided."""
    made = trace.fingerprints.get(node.results[0]) if node.results else None
    if node.step.name in _COMPARISONS and made is not None:
        return made.is_constant and made.count > 1 and node.results[0] not in trace.diverged
    if node.step.name not in _ARITHMETIC or len(node.operands) != 1:
        return False
    given = trace.fingerprints.get(node.operands[0])
    return given is not None and made is not None and torch.equal(given.sums, made.sums)


def _others(statuses: Statuses, starts: Sequence[Node], wrong: Sequence[Node]) -> Iterator[Node]:
    """Other candidates: other first wrong values, makers of unknown operands, operations of the same source line."""
    first = starts[0]
    feeding = _unknown_before(statuses, first)
    dependents = _dependents(statuses, first)
    for node in statuses.slice:
        if node is first:
            continue
        same_line = node in wrong and node.step.origin == first.step.origin and node.path > first.path
        is_start = node in starts and node.path not in dependents
        if is_start or same_line or node.path in feeding:
            yield _origin(statuses.trace, node)


def _dependents(statuses: Statuses, first: Node) -> set[Path]:
    """The operations that depend on a node."""
    values, paths = set(first.results), set[Path]()
    for node in statuses.slice:
        if values.intersection(statuses.operands(node)):
            values.update(node.results)
            paths.add(node.path)
    return paths


def _unknown_before(statuses: Statuses, node: Node) -> set[Path]:
    """The makers of the unknown values that a node depends on."""
    paths: set[Path] = set()
    pending = [node]
    while pending:
        for number in statuses.operands(pending.pop()):
            maker = statuses.trace.flow.makers.get(number)
            if maker is not None and statuses.by_value[number] is Status.UNKNOWN and maker.path not in paths:
                paths.add(maker.path)
                pending.append(maker)
    return paths


def _origin(trace: Trace, node: Node) -> Node:
    """The operation that computes what a node only passes on: the start of a collective, the maker of a list."""
    if node.step.name in ("comm.wait", UNPACK) and node.operands[0] in trace.flow.makers:
        return trace.flow.makers[node.operands[0]]
    return node


_ARITHMETIC = tuple(f"aten.{name}.Scalar" for name in ("add", "sub", "mul", "div"))
_COMPARISONS = tuple(f"aten.{name}.Scalar" for name in ("eq", "ne"))
_LOSSY = (
    "sum", "mean", "amax", "amin", "max", "min", "where", "masked_fill", "slice", "select", "gather", "embedding",
    "embedding_dense_backward", "scatter_add", "relu", "clamp", "index", "mask", "maximum", "minimum",
)  # fmt: skip
"""Ops that give the same result for other operands: dropped elements, or those in another order."""


def _loses(name: str) -> bool:
    """Whether a right result proves little of the operands."""
    return name.split(".")[1] in _LOSSY


def _communicates(node: Node) -> bool:
    return node.step.name in (WAIT, *BLOCKING)
