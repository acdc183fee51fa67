"""Reductions along the last or the first dims: their rows, their columns, and how a block of columns is reduced.

A row is what is reduced to one element: along the last dims it is contiguous, along the first ones its elements lie as
far apart as there are rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from ...runtime.program.records import Instruction
from .indexing import Dim, Index, Term, regroup
from .region import Declined, Region
from .values import compute_type
from .views import argument, dim_of, operand

REDUCTIONS = frozenset({"sum", "mean", "amax", "amin"})
"""By torch's name without the overload."""


@dataclass(frozen=True)
class Reduction:
    """One reduction: `kind` of the columns of each row of `operand`, into `slot`."""

    instruction: Instruction
    kind: str
    operand: int
    slot: int
    shape: tuple[int, ...]
    """Of the operand."""
    dims: tuple[int, ...]
    """The dims that are reduced: the last ones, or the first ones."""
    keeps_dims: bool
    dtype: torch.dtype
    """In which it is computed."""

    @property
    def along_first(self) -> bool:
        """Whether the first dims are reduced, and others are kept."""
        kept = [dim for dim in range(len(self.shape)) if dim not in self.dims]
        return prod(self.shape[dim] for dim in kept) > 1 and kept[-1] == len(self.shape) - 1

    @property
    def columns(self) -> int:
        return prod(self.shape[dim] for dim in self.dims)

    @property
    def rows(self) -> int:
        return prod(self.shape) // self.columns

    @property
    def type(self) -> str:
        return compute_type(self.dtype)

    @property
    def identity(self) -> str:
        """What a masked element counts as."""
        if self.kind in ("sum", "mean"):
            return "0.0" if self.dtype.is_floating_point else "0"
        if self.dtype.is_floating_point:
            return 'float("-inf")' if self.kind == "amax" else 'float("inf")'
        limits = torch.iinfo(self.dtype)
        return str(limits.min if self.kind == "amax" else limits.max)

    def combined(self, accumulator: str, block: str) -> str:
        """An accumulator with one more block of columns, element by element."""
        if self.kind in ("sum", "mean"):
            return f"{accumulator} + {block}"
        return f"{self._function}({accumulator}, {block})"

    def of_block(self, block: str) -> str:
        """The reduction of a block with all columns."""
        if self.kind in ("sum", "mean"):
            total = f"tl.sum({block}, axis=1)[:, None]"
            return total if self.kind == "sum" else f"{total} / {self.columns}"
        return f"tl.reduce({block}, 1, {self._function})[:, None]"

    def operand_index(self, index: Index, column: Term) -> Index:
        """The index of the operand's element at a column of the row that `index` is the result's index of."""
        reduced = regroup([column], [self.shape[dim] for dim in self.dims])
        kept = iter([dim for place, dim in enumerate(index) if not self.keeps_dims or place not in self.dims])
        columns = iter(reduced)
        dims: list[Dim] = [next(columns) if dim in self.dims else next(kept) for dim in range(len(self.shape))]
        return tuple(dims)

    @property
    def _function(self) -> str:
        return "maximum_or_nan" if self.kind == "amax" else "minimum_or_nan"


def reduction_of(region: Region, instruction: Instruction) -> Reduction:
    """The reduction that an instruction is. Raises Declined where neither the last nor the first dims are reduced."""
    source, slot = operand(instruction), instruction.writes()[0]
    shape = region.shape(source)
    stated = argument(instruction, 1, "dim")
    listed = [stated] if isinstance(stated, int) else stated
    dims = tuple(sorted({dim_of(d, len(shape)) for d in listed})) if isinstance(listed, list | tuple) else ()
    dims = dims or tuple(range(len(shape)))
    if dims not in (tuple(range(len(shape) - len(dims), len(shape))), tuple(range(len(dims)))):
        raise Declined(f"{instruction.op} reduces dims {list(dims)} of {list(shape)}, neither the first nor the last")
    if prod(shape) == 0:
        raise Declined(f"{instruction.op} reduces no elements")
    keeps = bool(argument(instruction, 2, "keepdim", False))
    kind = instruction.op.split(".")[1]
    dtype = region.dtype(slot)
    if not dtype.is_floating_point and kind == "mean":
        raise Declined(f"{instruction.op} of integers")
    return Reduction(instruction, kind, source, slot, shape, dims, keeps, dtype)
