"""Every value of a run, as a whole tensor of which a print is kept, and which operation made it from which others.

A print tells whether two tensors hold the same elements in the same order, up to a tolerance: random weighted sums of
the elements, the same weights for every tensor of one size. So a trace takes memory by values, not by elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..pipeline import MICROBATCH, microbatches
from ..placement import Shard
from ..schemas import definitions
from ..types import TensorType
from .code import Body, Code, Step, refs, used
from .cutting import join
from .errors import REPLICAS, InterpreterError
from .grid import Grid
from .observing import Path

_SUMS = 3
_SLACK = 8.0
"""A weighted sum of n elements may differ by so many roots of n, times the tolerance of one element."""


@dataclass(frozen=True)
class Print:
    """What is kept of a whole tensor."""

    shape: tuple[int, ...]
    sums: Tensor
    """(2 * _SUMS,): weighted sums of the finite elements, then of where the others are."""
    size: float
    """The largest absolute value of a finite element."""
    is_constant: bool
    """Whether all elements are equal."""

    @property
    def count(self) -> int:
        """How many elements it has."""
        return prod(self.shape)

    def matches(self, other: Print, tolerance: float) -> bool:
        """Whether the other holds the same elements in row-major order, whatever its shape."""
        if self.count != other.count:
            return False
        sizes = torch.tensor([self.size], dtype=torch.float64)
        return bool(same_elements(self.sums[None], sizes, other, tolerance).all())


@dataclass(frozen=True)
class Node:
    """One execution of one operation. Values are numbered in the order in which they are made, arguments first."""

    path: Path
    function: str
    step: Step
    operands: tuple[int, ...]
    results: tuple[int, ...]

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
    """What all entries do, with every call entered: nodes in order, the types of values, and what goes in and out."""

    arguments: tuple[int, ...] = ()
    """Of the whole program, as the next."""
    results: tuple[int, ...] = ()
    nodes: list[Node] = field(default_factory=list)
    types: list[TensorType | None] = field(default_factory=list)
    makers: dict[int, Node] = field(default_factory=dict)


@dataclass
class Trace:
    """Who made what; observes a run of the module. `prints` lacks lists, futures, and what was not reached."""

    flow: Flow
    grid: Grid
    """Of the ranks that make a value: all, or those of a stage."""
    prints: dict[int, Print] = field(default_factory=dict)
    torn: set[int] = field(default_factory=set)
    """Values of which ranks that should hold the same, as the type says, do not; their prints are of all ranks'."""
    last: Node | None = None
    """The operation that began last: where the run failed, if it did."""
    _nodes: dict[Path, Node] = field(default_factory=dict)
    _held: dict[int, dict[int, Tensor]] = field(default_factory=dict)

    @staticmethod
    def of(code: Code, grid: Grid, inputs: Sequence[Tensor]) -> Trace:
        """A trace in which only the arguments are known yet."""
        flow = _flow(code)
        prints = {number: print_of(value) for number, value in zip(flow.arguments, inputs, strict=True)}
        ranks = grid if code.axis is None else grid.without(code.axis)
        return Trace(flow, ranks, prints, _nodes={node.path: node for node in flow.nodes})

    def begins(self, rank: int, path: Path) -> None:
        """See `Observer`."""
        self.last = self._nodes.get(path, self.last)

    def made(self, rank: int, path: Path, values: Sequence[Any]) -> None:
        """See `Observer`."""
        for number, value in zip(self._nodes[path].results, values, strict=True):
            if isinstance(value, Tensor) and self.flow.types[number] is not None:
                held = self._held.setdefault(number, {})
                held[rank] = value
                if len(held) == self.grid.ranks:
                    self._keep(number, [held[r] for r in sorted(held)])
                    del self._held[number]

    def _keep(self, number: int, held: list[Tensor]) -> None:
        type_ = self.flow.types[number]
        if len(held) == 1 or type_ is None:
            self.prints[number] = print_of(held[0])
            return
        try:
            self.prints[number] = print_of(join(held, type_, self.grid, ""))
        except InterpreterError as error:
            if error.code != REPLICAS:
                raise
            self.torn.add(number)
            self.prints[number] = print_of(torch.stack(held))


def same_elements(sums: Tensor, sizes: Tensor, other: Print, tolerance: float) -> Tensor:
    """(n,): which of n prints of as many elements, given by sums (n, 2 * _SUMS) and sizes (n,), the other matches."""
    near = tolerance * sizes.clamp(min=other.size) * _SLACK * max(other.count, 1) ** 0.5
    matched: Tensor = ((sums - other.sums).abs() <= near[:, None]).all(dim=1)
    return matched


def print_of(tensor: Tensor) -> Print:
    """The print of a whole tensor of any dtype."""
    flat = tensor.detach().reshape(-1).double()
    finite = flat.isfinite()
    values = flat.where(finite, 0.0)
    weights = _weights(flat.numel())
    others = flat.nan_to_num(2.0, 3.0, 5.0).where(~finite, 0.0)
    constant = bool((tensor == tensor.reshape(-1)[:1].reshape(())).all()) if flat.numel() else True
    size = float(values.abs().amax()) if flat.numel() else 0.0
    return Print(tuple(tensor.shape), torch.cat([weights @ values, weights @ others]), size, constant)


@lru_cache(maxsize=32)
def _weights(count: int) -> Tensor:
    random = torch.Generator().manual_seed(count)
    return torch.randn((_SUMS, count), generator=random, dtype=torch.float64)


def _flow(code: Code) -> Flow:
    flow = Flow()
    flow.arguments = tuple(_numbers(flow, [port.type for port in code.arguments]))
    gives: list[tuple[int, ...]] = []
    for entry, body in enumerate(code.entries):
        own = {port.places[entry]: number for number, port in zip(flow.arguments, code.arguments, strict=True)}
        given = [own[place] for place in range(len(body.arguments))]
        gives.append(_walk(code, body, given, () if code.axis is None else (entry,), flow))
    flow.results = tuple(
        next(gives[entry][place] for entry, place in enumerate(port.places) if place is not None)
        for port in code.results
    )
    return flow


def _walk(code: Code, body: Body, given: Sequence[int], callers: Path, flow: Flow) -> tuple[int, ...]:
    """Add the nodes of one call; its results' values."""
    values = dict(zip(body.arguments, given, strict=True))
    for at, step in enumerate(body.steps):
        path = (*callers, at)
        operands = tuple(values[slot] for slot in used(step))
        if step.callee:
            results = _walk(code, code.bodies[step.callee], operands, path, flow)
        else:
            results = tuple(_numbers(flow, [_of_one_microbatch(code, body.types[slot]) for slot in step.out]))
            node = Node(path, body.name, step, operands, results)
            flow.nodes.append(node)
            flow.makers.update(dict.fromkeys(results, node))
        values.update(zip(step.out, results, strict=True))
    return tuple(values[slot] for slot in body.results)


def _numbers(flow: Flow, types: Sequence[TensorType | None]) -> Iterator[int]:
    for type_ in types:
        flow.types.append(type_)
        yield len(flow.types) - 1


def _of_one_microbatch(code: Code, type_: TensorType | None) -> TensorType | None:
    """The type of what the ranks of a stage hold of one microbatch, where each is a turn of theirs."""
    if type_ is None or code.axis is None:
        return type_
    cut = {placement.dim for axis, placement in type_.placement if axis == MICROBATCH and isinstance(placement, Shard)}
    here = tuple(each for each in type_.placement if each[0] not in (MICROBATCH, code.axis))
    turns = microbatches(code.mesh)
    extents = type_.extents and tuple(n // turns if dim in cut else n for dim, n in enumerate(type_.extents))
    return replace(type_, placement=here, extents=extents)
