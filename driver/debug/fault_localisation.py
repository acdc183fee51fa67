"""Which operation of a module that a pass left first gives what the module before never had, and makes a result wrong.

Both modules run on the same inputs, and every value of both is known as a whole tensor (`ir/equivalence/trace.py`).
A value is *right* if the module before computed it too, or if something right is computed from it. The operation that
is looked for has right operands and gives a value that is not right, on the way to a result that differs. Values of
which this cannot be told (constants, what each rank has of its own, such as the offset of its chunk) are neither.
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
    """What is known of a value."""

    RIGHT = "right"
    WRONG = "wrong"
    """It is nowhere in the other module."""
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Suspects:
    """The operations found; without any, the values are right and `main` returns them in the wrong places."""

    first: Node | None
    others: tuple[Node, ...] = ()
    """What may be guilty in its stead: values between right ones that the other module lacks for no fault."""


class Values:
    """Every value of one trace, to be looked up by what it holds."""

    def __init__(self, trace: Trace, tolerance: float) -> None:
        self.trace = trace
        self.tolerance = tolerance
        by_count: dict[int, list[Fingerprint]] = defaultdict(list)
        for each in (*trace.fingerprints.values(), *chain.from_iterable(trace.parts.values())):
            by_count[each.count].append(each)
        self._tables = {count: self._table(prints) for count, prints in by_count.items()}

    def holds(self, trace: Trace, number: int) -> bool:
        """Whether a value of another trace is one of these, or all its microbatches' parts are."""
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
        return torch.stack([each.sums for each in prints]), torch.tensor([each.size for each in prints]).double()


@dataclass
class Statuses:
    """The status of every value of a trace, against the values of another."""

    trace: Trace
    other: Values
    wrong_results: frozenset[int]
    of: dict[int, Status] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.of.update(dict.fromkeys(self.trace.flow.arguments, Status.RIGHT))
        for node in self.trace.flow.nodes:
            for number in node.results:
                self.of[number] = self._status(node, number)
        for node in reversed(self.trace.flow.nodes):
            if self._proves(node):
                self.of.update(
                    (number, Status.RIGHT)
                    for number in self.operands(node)
                    if self.of[number] is not Status.RIGHT and number not in self.wrong_results
                )

    def operands(self, node: Node) -> Iterator[int]:
        """The tensors that a node reads, through lists and futures."""
        for number in node.operands:
            if self._is_seen(number):
                yield number
            elif number in self.trace.flow.makers:
                yield from self.operands(self.trace.flow.makers[number])

    def _status(self, node: Node, number: int) -> Status:
        if not self._is_seen(number):
            return Status.UNKNOWN
        if self.other.holds(self.trace, number):
            return Status.RIGHT
        operands = list(self.operands(node))
        known = [self.of[operand] for operand in operands]
        if not self._is_floating(number):
            return Status.UNKNOWN
        if all(status is Status.UNKNOWN for status in known) and not (known and _communicates(node)):
            return Status.UNKNOWN
        is_own = Status.UNKNOWN in known or self._says_nothing(number, operands)
        return Status.UNKNOWN if number in self.trace.diverged and is_own and not _communicates(node) else Status.WRONG

    def _is_floating(self, number: int) -> bool:
        type_ = self.trace.flow.types[number]
        return type_ is not None and type_.dtype.is_floating_point

    def _says_nothing(self, number: int, operands: Sequence[int]) -> bool:
        """Whether a type has no placement though operands are sharded: passes write so what a rank has of its own."""
        placements = [type_.placement for each in operands if (type_ := self.trace.flow.types[each]) is not None]
        type_ = self.trace.flow.types[number]
        sharded = any(isinstance(placement, Shard) for pairs in placements for _, placement in pairs)
        return type_ is not None and not type_.placement and sharded

    def _is_seen(self, number: int) -> bool:
        return number in self.trace.fingerprints

    def _proves(self, node: Node) -> bool:
        """Whether all results are right, and one could not be if an operand were not."""
        seen = [number for number in node.results if self._is_seen(number)]
        return (
            "_like" not in node.step.name
            and all(self.of[number] is Status.RIGHT for number in seen)
            and any(self._says_something(number) for number in seen)
        )

    def _says_something(self, number: int) -> bool:
        type_, found = self.trace.flow.types[number], self.trace.fingerprints.get(number)
        if type_ is None or found is None or type_.dtype is torch.bool:
            return False
        return not found.is_constant or (found.count == 1 and found.size not in (0, 1))

    @cached_property
    def slice(self) -> list[Node]:
        """The nodes that lead to wrong results through values that are not right, in execution order."""
        wanted = set(self.wrong_results)
        found = []
        for node in reversed(self.trace.flow.nodes):
            if any(number in wanted and self.of[number] is not Status.RIGHT for number in node.results):
                found.append(node)
                wanted.update(self.operands(node))
        return found[::-1]


def suspects(statuses: Statuses) -> Suspects:
    """The operation with which a trace goes wrong."""
    wrong = [node for node in statuses.slice if any(statuses.of[n] is Status.WRONG for n in node.results)]
    starts = [n for n in wrong if all(statuses.of[o] is not Status.WRONG for o in statuses.operands(n))]
    if not starts:
        unknown = tuple(statuses.slice)
        return Suspects(unknown[0], unknown[1:]) if unknown else Suspects(None)
    return Suspects(_started(statuses.trace, starts[0]), tuple(_others(statuses, starts, wrong)))


def _others(statuses: Statuses, starts: Sequence[Node], wrong: Sequence[Node]) -> Iterator[Node]:
    """Other places where values go wrong; what the first one reads of unknown values, and what else its line makes."""
    first = starts[0]
    feeding = _unknown_before(statuses, first)
    tainted = _tainted(statuses, first)
    for node in statuses.slice:
        if node is first:
            continue
        same_line = node in wrong and node.step.origin == first.step.origin and node.path > first.path
        is_start = node in starts and node.path not in tainted
        if is_start or same_line or node.path in feeding:
            yield _started(statuses.trace, node)


def _tainted(statuses: Statuses, first: Node) -> set[Path]:
    """What reads a value of a node, or of another that does."""
    values, found = set(first.results), set[Path]()
    for node in statuses.slice:
        if values.intersection(statuses.operands(node)):
            values.update(node.results)
            found.add(node.path)
    return found


def _unknown_before(statuses: Statuses, node: Node) -> set[Path]:
    """The makers of the unknown values that a node reads, and of those that they read."""
    found: set[Path] = set()
    left = [node]
    while left:
        for number in statuses.operands(left.pop()):
            maker = statuses.trace.flow.makers.get(number)
            if maker is not None and statuses.of[number] is Status.UNKNOWN and maker.path not in found:
                found.add(maker.path)
                left.append(maker)
    return found


def _started(trace: Trace, node: Node) -> Node:
    """What makes the value that a node only hands on: the start of a collective, the maker of a list."""
    if node.step.name in ("comm.wait", UNPACK) and node.operands[0] in trace.flow.makers:
        return trace.flow.makers[node.operands[0]]
    return node


def _communicates(node: Node) -> bool:
    return node.step.name in (WAIT, *BLOCKING)
