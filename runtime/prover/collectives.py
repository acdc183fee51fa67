"""Collectives as events: the properties on which all members must agree, and the shapes of results."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..program.arguments import dtype_name
from ..program.mesh import RankMesh
from ..program.records import Instruction
from .values import Meta


@dataclass(frozen=True)
class Collective:
    """One collective; all members of its group must start an equal one."""

    op: str
    axes: tuple[str, ...]
    """The axes of its group, without those of size 1."""
    shape: tuple[int, ...]
    dtype: str
    options: tuple[tuple[str, object], ...]
    """The reduction and the dims."""

    def difference(self, other: Collective) -> str:
        """The first property that differs: "its shape is [2, 3] here and [3, 3] there"."""
        mine, theirs = self._fields(), other._fields()
        name, own_value = next((name, value) for name, value in mine.items() if theirs.get(name) != value)
        return f"its {name} is {own_value} here and {theirs.get(name, 'not given')} there"

    def _fields(self) -> dict[str, object]:
        return {"op": self.op, "shape": list(self.shape), "dtype": self.dtype, **dict(self.options)}


def collective_of(instruction: Instruction, operand: Meta, mesh: RankMesh) -> Collective:
    """The collective that an instruction starts on `operand`."""
    axes = tuple(axis for axis in axes_of(instruction) if mesh.sizes[axis] > 1)
    options = tuple((key, instruction.kwargs[key]) for key in sorted(instruction.kwargs) if key != "axes")
    return Collective(instruction.op.removesuffix("_start"), axes, operand.shape, dtype_name(operand.dtype), options)


def axes_of(instruction: Instruction) -> tuple[str, ...]:
    """The axes that an instruction names; empty where it names none."""
    axes = instruction.kwargs.get("axes")
    return tuple(str(axis) for axis in axes) if isinstance(axes, list | tuple) else ()


def result_of(instruction: Instruction, operand: Meta, mesh: RankMesh) -> Meta:
    """A member's result. Raises ValueError for a dim that does not exist, or that the group's size does not divide."""
    shape = list(operand.shape)
    size = mesh.size(axes_of(instruction))
    match instruction.op:
        case "comm.all_gather_start":
            shape[_dim(instruction, "dim", shape)] *= size
        case "comm.reduce_scatter_start":
            _split(shape, _dim(instruction, "dim", shape), size)
        case "comm.all_to_all_start":
            _split(shape, _dim(instruction, "split_dim", shape), size)
            shape[_dim(instruction, "concat_dim", shape)] *= size
    return Meta.contiguous(tuple(shape), operand.dtype)


def rank_result_of(instruction: Instruction, operand: Meta) -> Meta:
    """The result of `rank.shard` or `rank.mask`. Raises ValueError for a dim that does not exist."""
    shape = list(operand.shape)
    dim = _dim(instruction, "dim", shape)
    if instruction.op == "rank.shard":
        shape[dim] = _integer(instruction, "chunk")
    return Meta.contiguous(tuple(shape), operand.dtype)


def random_result_of(instruction: Instruction) -> Meta:
    """The result of `rank.random`. Raises ValueError for chunks that are not numbers."""
    chunks = instruction.kwargs["chunks"]
    if not isinstance(chunks, list | tuple) or not all(isinstance(n, int) for n in chunks):
        raise ValueError(f"chunks are {chunks!r}, expected numbers")
    shape = tuple(n for n in chunks if isinstance(n, int))
    return Meta.contiguous(shape, torch.int64 if instruction.kwargs["below"] is None else torch.bool)


def _split(shape: list[int], dim: int, size: int) -> None:
    if shape[dim] % size:
        raise ValueError(f"dim {dim} of {shape} does not divide into {size} chunks")
    shape[dim] //= size


def _dim(instruction: Instruction, key: str, shape: list[int]) -> int:
    dim = _integer(instruction, key)
    if not 0 <= dim < len(shape):
        raise ValueError(f"{key} {dim} is not a dim of {shape}")
    return dim


def _integer(instruction: Instruction, key: str) -> int:
    value = instruction.kwargs[key]
    if not isinstance(value, int):
        raise ValueError(f"{key} is {value!r}, which is not a number")
    return value
