"""Every value of a run, as a whole tensor of which a print is kept, and which operation made it from which others.

A print tells whether two tensors hold the same elements in the same order, up to a tolerance: random weighted sums of
the elements, the same weights for every tensor of one size. So a trace takes memory by values, not by elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..interpreter.code import Code
from ..interpreter.cutting import cut, join
from ..interpreter.errors import REPLICAS, InterpreterError
from ..interpreter.grid import Grid
from ..interpreter.observing import Path
from ..interpreter.padding import Padding
from ..pipelined_module import MICROBATCH
from ..types import TensorType
from .flow import Flow, Node, flow_of, part_type

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


@dataclass
class Trace:
    """Who made what; observes a run of the module. `prints` lacks lists, futures, and what was not reached."""

    flow: Flow
    grid: Grid
    """Of the ranks that make a value: all, or those of a stage."""
    prints: dict[int, Print] = field(default_factory=dict)
    parts: dict[int, tuple[Print, ...]] = field(default_factory=dict)
    """Where microbatches are as ranks: of each value the part of each microbatch, which a turn of a stage makes."""
    torn: set[int] = field(default_factory=set)
    """Values of which ranks that should hold the same, as the type says, do not; their prints are of all ranks'."""
    last: Node | None = None
    """The operation that began last: where the run failed, if it did."""
    _nodes: dict[Path, Node] = field(default_factory=dict)
    _held: dict[int, dict[int, Tensor]] = field(default_factory=dict)

    @staticmethod
    def of(code: Code, grid: Grid, inputs: Sequence[Tensor]) -> Trace:
        """A trace in which only the arguments are known yet."""
        flow = flow_of(code)
        prints = {number: print_of(value) for number, value in zip(flow.arguments, inputs, strict=True)}
        ranks = grid if code.axis is None else grid.without(code.axis)
        made = Trace(flow, ranks, prints, _nodes={node.path: node for node in flow.nodes})
        if grid.has([MICROBATCH]):
            for number, port, value in zip(flow.arguments, code.arguments, inputs, strict=True):
                held = [cut(value, port.type, rank, grid, Padding.ZERO) for rank in range(grid.ranks)]
                made._keep_parts(number, held, port.type)
        return made

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

    def agrees(self, number: int, other: Trace, theirs: int, tolerance: float, turn: int | None) -> bool | None:
        """Whether a value here is one of another trace, or this one's part of a microbatch is: of `turn`, else of any.

        None where one of the two is not known.
        """
        mine, their = self.prints.get(number), other.prints.get(theirs)
        if mine is None or their is None:
            return None
        parts = self.parts.get(number, ())
        each = parts if turn is None else parts[turn : turn + 1]
        return any(one.matches(their, tolerance) for one in (mine, *each))

    def _keep(self, number: int, held: list[Tensor]) -> None:
        type_ = self.flow.types[number]
        if len(held) == 1 or type_ is None:
            self.prints[number] = print_of(held[0])
            return
        whole = _joined(held, type_, self.grid)
        if whole is None:
            self.torn.add(number)
            self.prints[number] = print_of(torch.stack(held))
            return
        self.prints[number] = print_of(whole)
        if self.grid.has([MICROBATCH]):
            self._keep_parts(number, held, type_)

    def _keep_parts(self, number: int, held: list[Tensor], type_: TensorType) -> None:
        ranks, turns = self.grid.without(MICROBATCH), range(self.grid.size([MICROBATCH]))
        here = part_type(type_, self.grid.mesh)
        found = [_joined([held[r] for r in self.grid.at(MICROBATCH, turn)], here, ranks) for turn in turns]
        prints = tuple(print_of(part) for part in found if part is not None)
        self.parts[number] = prints if len(prints) == len(turns) else ()


def _joined(held: list[Tensor], type_: TensorType, grid: Grid) -> Tensor | None:
    """The whole tensor; None where ranks that should hold the same do not."""
    try:
        return join(held, type_, grid, "")
    except InterpreterError as error:
        if error.code != REPLICAS:
            raise
        return None


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
