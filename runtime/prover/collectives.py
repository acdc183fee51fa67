"""Collectives as their group sees them: what all of its members must agree on, and the shape of what they get."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..program.arguments import dtype_name
from ..program.mesh import RankMesh
from ..program.records import Instruction
from .values import Meta


@dataclass(frozen=True)
class Collective:
    """One collective; members of a group must give equal ones."""

    op: str
    axes: tuple[str, ...]
    """The axes of its group, those of size 1 left out."""
    shape: tuple[int, ...]
    dtype: str
    options: tuple[tuple[str, object], ...]
    """reduce and dims."""

    def difference(self, other: Collective) -> str:
        """What differs: "its shape is [2, 3] here and [3, 3] there"."""
        mine, theirs = self._rows(), other._rows()
        name, here = next((name, value) for name, value in mine.items() if theirs.get(name) != value)
        return f"its {name} is {here} here and {theirs.get(name, 'not given')} there"

    def _rows(self) -> dict[str, object]:
        return {"op": self.op, "shape": list(self.shape), "dtype": self.dtype, **dict(self.options)}


def collective_of(each: Instruction, operand: Meta, mesh: RankMesh) -> Collective:
    """The collective that an instruction starts on a tensor."""
    axes = tuple(axis for axis in axes_of(each) if mesh.sizes[axis] > 1)
    options = tuple((key, each.kwargs[key]) for key in sorted(each.kwargs) if key != "axes")
    return Collective(each.op.removesuffix("_start"), axes, operand.shape, dtype_name(operand.dtype), options)


def axes_of(each: Instruction) -> tuple[str, ...]:
    """The axes that an instruction names; empty when it names none."""
    axes = each.kwargs.get("axes")
    return tuple(str(axis) for axis in axes) if isinstance(axes, list | tuple) else ()


def result_of(each: Instruction, operand: Meta, mesh: RankMesh) -> Meta:
    """What a member gets; raises ValueError for a dim that is not there, or that the group does not divide."""
    shape = list(operand.shape)
    size = mesh.size(axes_of(each))
    match each.op:
        case "comm.all_gather_start":
            shape[_dim(each, "dim", shape)] *= size
        case "comm.reduce_scatter_start":
            _cut(shape, _dim(each, "dim", shape), size)
        case "comm.all_to_all_start":
            _cut(shape, _dim(each, "split_dim", shape), size)
            shape[_dim(each, "concat_dim", shape)] *= size
    return Meta.contiguous(tuple(shape), operand.dtype)


def rank_result_of(each: Instruction, operand: Meta) -> Meta:
    """What `rank.shard` and `rank.mask` give of a tensor; raises ValueError for a dim that is not there."""
    shape = list(operand.shape)
    dim = _dim(each, "dim", shape)
    if each.op == "rank.shard":
        shape[dim] = _whole(each, "chunk")
    return Meta.contiguous(tuple(shape), operand.dtype)


def drawn_of(each: Instruction) -> Meta:
    """What `rank.random` gives."""
    chunks = each.kwargs["chunks"]
    if not isinstance(chunks, list | tuple) or not all(isinstance(n, int) for n in chunks):
        raise ValueError(f"chunks are {chunks!r}, which are no numbers")
    shape = tuple(n for n in chunks if isinstance(n, int))
    return Meta.contiguous(shape, torch.int64 if each.kwargs["below"] is None else torch.bool)


def _cut(shape: list[int], dim: int, size: int) -> None:
    if shape[dim] % size:
        raise ValueError(f"dim {dim} of {shape} does not divide into {size} chunks")
    shape[dim] //= size


def _dim(each: Instruction, key: str, shape: list[int]) -> int:
    dim = _whole(each, key)
    if not 0 <= dim < len(shape):
        raise ValueError(f"{key} {dim} is not a dim of {shape}")
    return dim


def _whole(each: Instruction, key: str) -> int:
    value = each.kwargs[key]
    if not isinstance(value, int):
        raise ValueError(f"{key} is {value!r}, which is not a number")
    return value
