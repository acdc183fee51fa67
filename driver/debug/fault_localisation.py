"""Fault localisation: the first operation with a wrong value in the module after a pass.

Both modules, before and after the pass, run on the same inputs, and every value is traced as a global tensor
(`ir/equivalence/trace.py`). A value is *right* if the module before computed it too, or if a right value is computed
from it. The faulty operation has right operands and a wrong result, and a result of the program depends on it. Values
that are neither right nor wrong are *unknown*: constants, and values of one rank such as the offset of its chunk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor

from ...ir.collectives import BLOCKING, WAIT
from ...ir.equivalence.flow import Node
from ...ir.equivalence.trace import Fingerprint, Trace, same_elements
from ...ir.interpreter.code import UNPACK
from ...ir.interpreter.observing import Path
from ...ir.placement import Shard


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


class Values:
    """The values of one trace, looked up by their elements."""

    def __init__(self, trace: Trace, tolerance: float) -> None:
        self.trace = trace
        self.tolerance = tolerance
        by_count: dict[int, list[Fingerprint]] = defaultdict(list)
        for fingerprint in (*trace.fingerprints.values(), *chain.from_iterable(trace.parts.values())):
            by_count[fingerprint.count].append(fingerprint)
        self._tables = {count: self._table(prints) for count, prints in by_count.items()}

    def holds(self, trace: Trace, number: int) -> bool:
        """Whether a value of another trace is among these, or the parts of all its microbatches are."""
        wanted, parts = trace.fingerprints.get(number), trace.parts.get(number, ())
        if wanted is None:
            return False
        return self._holds(wanted) or (len(parts) > 0 and all(self._holds(part) for part in parts))

    def _holds(self, wanted: Fingerprint) -> bool:
        if wanted.count not in self._tables:
            return False
        sums, sizes = self._tables[wanted.count]
        return bool(same_elements(sums, sizes, wanted, self.tolerance).any())

    def _table(self, prints: Sequence[Fingerprint]) -> tuple[Tensor, Tensor]:
        return torch.stack([fingerprint.sums for fingerprint in prints]), torch.tensor(
            [fingerprint.size for fingerprint in prints]
        ).double()


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
        if self.other.holds(self.trace, number):
            return Status.RIGHT
        operands = list(self.operands(node))
        known = [self.by_value[operand] for operand in operands]
        if not self._is_floating(number):
            return Status.UNKNOWN
        if all(status is Status.UNKNOWN for status in known) and not (known and _communicates(node)):
            return Status.UNKNOWN
        is_own = Status.UNKNOWN in known or self._is_of_one_rank(number, operands)
        return Status.UNKNOWN if number in self.trace.diverged and is_own and not _communicates(node) else Status.WRONG

    def _is_floating(self, number: int) -> bool:
        type_ = self.trace.flow.types[number]
        return type_ is not None and type_.dtype.is_floating_point

    def _is_of_one_rank(self, number: int, operands: Sequence[int]) -> bool:
        """Whether the type has no placement though operands are sharded: the value belongs to one rank."""
        placements = [type_.placement for operand in operands if (type_ := self.trace.flow.types[operand]) is not None]
        type_ = self.trace.flow.types[number]
        sharded = any(isinstance(placement, Shard) for pairs in placements for _, placement in pairs)
        return type_ is not None and not type_.placement and sharded

    def _is_traced(self, number: int) -> bool:
        return number in self.trace.fingerprints

    def _proves(self, node: Node) -> bool:
        """Whether right results of this operation prove that its operands are right."""
        seen = [number for number in node.results if self._is_traced(number)]
        return (
            "_like" not in node.step.name
            and all(self.by_value[number] is Status.RIGHT for number in seen)
            and any(self._is_distinctive(number) for number in seen)
        )

    def _is_distinctive(self, number: int) -> bool:
        type_, fingerprint = self.trace.flow.types[number], self.trace.fingerprints.get(number)
        if type_ is None or fingerprint is None or type_.dtype is torch.bool:
            return False
        return not fingerprint.is_constant or (fingerprint.count == 1 and fingerprint.size not in (0, 1))

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
    return Suspects(_origin(statuses.trace, starts[0]), tuple(_others(statuses, starts, wrong)))


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


def _communicates(node: Node) -> bool:
    return node.step.name in (WAIT, *BLOCKING)
