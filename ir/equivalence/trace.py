"""Trace a run of a module: a fingerprint of every value as a global tensor, and the data flow between values.

A fingerprint shows whether two tensors hold the same elements in the same order, up to a tolerance: a few random
weighted sums of the elements, with the same weights for all tensors of one size. So a trace needs little memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from ..placement import Partial
from ..types import TensorType
from .flow import Flow, Node, flow_of, one_microbatch_type
from .reconstruction import Part, candidates

_SUMS = 3
_SLACK = 8.0
"""A weighted sum of n elements may differ by this factor * sqrt(n) * the tolerance of one element."""


@dataclass(frozen=True)
class Fingerprint:
    """The fingerprint of a global tensor."""

    shape: tuple[int, ...]
    sums: Tensor
    """(2 * _SUMS,): weighted sums of the finite elements, then of the positions of the others."""
    size: float
    """The largest absolute value of a finite element."""
    is_constant: bool
    """Whether all elements are equal."""

    @property
    def count(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    def matches(self, other: Fingerprint, tolerance: float) -> bool:
        """Whether the other tensor has the same elements in row-major order, in any shape."""
        if self.count != other.count:
            return False
        sizes = torch.tensor([self.size], dtype=torch.float64)
        return bool(same_elements(self.sums[None], sizes, other, tolerance).all())


@dataclass
class Trace:
    """An observer of a run. `fingerprints` has all values but lists, futures, and what was not reached."""

    flow: Flow
    grid: Grid
    """The ranks that compute a value: all, or those of a stage."""
    fingerprints: dict[int, Fingerprint] = field(default_factory=dict)
    parts: dict[int, tuple[Fingerprint, ...]] = field(default_factory=dict)
    """With a microbatch axis: by value, the fingerprint of each microbatch's part."""
    diverged: set[int] = field(default_factory=set)
    """Values whose replicas differ between ranks; their fingerprints are of all ranks' tensors stacked."""
    subvalues: list[Fingerprint] = field(default_factory=list)
    """Of what operations compute inside; of all ranks' tensors stacked."""
    recognised: dict[int, Part] = field(default_factory=dict)
    """Values whose ranks' tensors are a legal placement of a known value, though their type does not say so."""
    knows: Callable[[Fingerprint], bool] | None = None
    """Whether another trace has a value; given before the run."""
    last: Node | None = None
    """The operation that began last; if the run failed, the one that failed."""
    _nodes: dict[Path, Node] = field(default_factory=dict)
    _incomplete: dict[int, dict[int, Tensor]] = field(default_factory=dict)
    _inside: dict[tuple[Path, int], list[Tensor]] = field(default_factory=dict)
    """By operation and number: what each rank computes inside."""
    _point: tuple[int, Path] = (0, ())
    _count: int = 0
    _is_computing: bool = False

    @staticmethod
    def of(code: Code, grid: Grid, inputs: Sequence[Tensor]) -> Trace:
        """A trace before the run, with only the arguments known."""
        flow = flow_of(code)
        fingerprints = {number: fingerprint_of(value) for number, value in zip(flow.arguments, inputs, strict=True)}
        ranks = grid if code.axis is None else grid.without(code.axis)
        trace = Trace(flow, ranks, fingerprints, _nodes={node.path: node for node in flow.nodes})
        if grid.has([MICROBATCH]):
            for number, port, value in zip(flow.arguments, code.arguments, inputs, strict=True):
                local_values = [cut(value, port.type, rank, grid, Padding.ZERO) for rank in range(grid.ranks)]
                trace._keep_microbatches(number, local_values, port.type)
        return trace

    def begins(self, rank: int, path: Path) -> None:
        """See `Observer`."""
        self.last = self._nodes.get(path, self.last)
        self._point, self._count, self._is_computing = (rank, path), 0, True

    def made(self, rank: int, path: Path, values: Sequence[Any]) -> None:
        """See `Observer`."""
        self._is_computing = False
        for number, value in zip(self._nodes[path].results, values, strict=True):
            if isinstance(value, Tensor) and self.flow.types[number] is not None:
                by_rank = self._incomplete.setdefault(number, {})
                by_rank[rank] = value
                if len(by_rank) == self.grid.ranks:
                    self._keep(number, [by_rank[r] for r in sorted(by_rank)])
                    del self._incomplete[number]

    def keep_subvalue(self, value: Tensor) -> None:
        """Keep a tensor that the present operation of the present rank computes inside; not what observing it takes."""
        if not self._is_computing:
            return
        by_rank = self._inside.setdefault((self._point[1], self._count), [])
        by_rank.append(value.detach())
        self._count += 1
        if len(by_rank) == self.grid.ranks:
            del self._inside[self._point[1], self._count - 1]
            if len({tensor.shape for tensor in by_rank}) == 1:
                self.subvalues.append(fingerprint_of(torch.stack(by_rank) if len(by_rank) > 1 else by_rank[0]))

    def agrees(
        self, number: int, other: Trace, other_number: int, tolerance: float, microbatch: int | None
    ) -> bool | None:
        """Whether a value, or its part of `microbatch` (None: of any), equals one of another trace.

        None if one of the two is not known.
        """
        own_fingerprint, other_fingerprint = self.fingerprints.get(number), other.fingerprints.get(other_number)
        if own_fingerprint is None or other_fingerprint is None:
            return None
        parts = self.parts.get(number, ())
        candidates = parts if microbatch is None else parts[microbatch : microbatch + 1]
        return any(candidate.matches(other_fingerprint, tolerance) for candidate in (own_fingerprint, *candidates))

    def _keep(self, number: int, local_values: list[Tensor]) -> None:
        type_ = self.flow.types[number]
        if len(local_values) == 1 or type_ is None:
            self.fingerprints[number] = fingerprint_of(local_values[0])
            return
        whole = _joined(local_values, type_, self.grid)
        if whole is None:
            self.diverged.add(number)
            self.fingerprints[number] = fingerprint_of(torch.stack(local_values))
            self._recognise(number, local_values)
            if self.grid.has([MICROBATCH]):
                self._keep_microbatches(number, local_values, type_)
            return
        self.fingerprints[number] = fingerprint_of(whole)
        if self.knows is not None and not self.knows(self.fingerprints[number]):
            stacked = fingerprint_of(torch.stack(local_values))
            if self.knows(stacked):
                self.recognised[number] = Part.CHUNK
        if self.grid.has([MICROBATCH]):
            self._keep_microbatches(number, local_values, type_)

    def _recognise(self, number: int, local_values: list[Tensor]) -> None:
        """Look for a known value of which the ranks' tensors are a legal placement."""
        if self.knows is None or not local_values[0].is_floating_point() or self._drops_a_sum(number):
            return
        parts = (part for whole, part in candidates(local_values, self.grid) if self.knows(fingerprint_of(whole)))
        part = next(parts, None)
        if part is not None:
            self.recognised[number] = part

    def _drops_a_sum(self, number: int) -> bool:
        """Whether an operand's type says that ranks hold terms of a sum, and the result's does not."""
        type_, maker = self.flow.types[number], self.flow.makers.get(number)
        own = {axis for axis, placement in type_.placement if isinstance(placement, Partial)} if type_ else set()
        types = [self.flow.types[operand] for operand in maker.operands] if maker is not None else []
        partial = {
            axis
            for operand in types
            if operand is not None
            for axis, placement in operand.placement
            if isinstance(placement, Partial)
        }
        return bool(partial - own)

    def _keep_microbatches(self, number: int, local_values: list[Tensor], type_: TensorType) -> None:
        grid, microbatches = self.grid.without(MICROBATCH), range(self.grid.size([MICROBATCH]))
        local_type = one_microbatch_type(type_, self.grid.mesh)
        wholes = [
            _joined([local_values[r] for r in self.grid.at(MICROBATCH, turn)], local_type, grid)
            for turn in microbatches
        ]
        fingerprints = tuple(fingerprint_of(part) for part in wholes if part is not None)
        self.parts[number] = fingerprints if len(fingerprints) == len(microbatches) else ()


def _joined(local_values: list[Tensor], type_: TensorType, grid: Grid) -> Tensor | None:
    """The global tensor; None if replicas differ."""
    try:
        return join(local_values, type_, grid, "")
    except InterpreterError as error:
        if error.code != REPLICAS:
            raise
        return None


def same_elements(sums: Tensor, sizes: Tensor, other: Fingerprint, tolerance: float) -> Tensor:
    """(n,): which of n fingerprints, given by sums (n, 2 * _SUMS) and sizes (n,), match the other of equal count."""
    near = tolerance * sizes.clamp(min=other.size) * _SLACK * max(other.count, 1) ** 0.5
    matched: Tensor = ((sums - other.sums).abs() <= near[:, None]).all(dim=1)
    return matched


def fingerprint_of(tensor: Tensor) -> Fingerprint:
    """The fingerprint of a tensor of any dtype."""
    flat = tensor.detach().reshape(-1).double()
    finite = flat.isfinite()
    values = flat.where(finite, 0.0)
    weights = _weights(flat.numel())
    others = flat.nan_to_num(2.0, 3.0, 5.0).where(~finite, 0.0)
    constant = bool((tensor == tensor.reshape(-1)[:1].reshape(())).all()) if flat.numel() else True
    size = float(values.abs().amax()) if flat.numel() else 0.0
    return Fingerprint(tuple(tensor.shape), torch.cat([weights @ values, weights @ others]), size, constant)


@lru_cache(maxsize=32)
def _weights(count: int) -> Tensor:
    random = torch.Generator().manual_seed(count)
    return torch.randn((_SUMS, count), generator=random, dtype=torch.float64)
