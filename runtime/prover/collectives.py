"""Collectives as events: the properties on which all members must agree, and the shapes of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..program.arguments import dtype_name
from ..program.mesh import RankMesh
from ..program.ops import COALESCED, COUNTS
from ..program.records import Instruction
from .values import Meta, Path, Storage


@dataclass(frozen=True)
class Collective:
    """One collective; all members of its group must start an equal one."""

    op: str
    axes: tuple[str, ...]
    """The axes of its group, without those of size 1."""
    shapes: tuple[tuple[int, ...], ...]
    """Of its operand, or of each tensor of a bucket."""
    dtype: str
    options: tuple[tuple[str, object], ...]
    """The reduction and the dims."""

    def difference(self, other: Collective) -> str:
        """The first property that differs: "its shape is [2, 3] here and [3, 3] there"."""
        mine, theirs = self._fields(), other._fields()
        name, own_value = next((name, value) for name, value in mine.items() if theirs.get(name) != value)
        return f"its {name} is {own_value} here and {theirs.get(name, 'not given')} there"

    def _fields(self) -> dict[str, object]:
        shape = ", ".join(str(list(shape)) for shape in self.shapes)
        return {"op": self.op, "shape": shape, "dtype": self.dtype, **dict(self.options)}


def collective_of(instruction: Instruction, operands: Sequence[Meta], mesh: RankMesh) -> Collective:
    """The collective that an instruction starts on its operands. Raises ValueError for a bucket of several dtypes."""
    axes = tuple(axis for axis in axes_of(instruction) if mesh.sizes[axis] > 1)
    given = {key: instruction.kwargs[key] for key in sorted(instruction.kwargs) if key not in ("axes", *COUNTS)}
    options = tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in given.items())
    moved = operands[:1] if has_counts(instruction) else operands
    dtypes = list(dict.fromkeys(dtype_name(operand.dtype) for operand in moved))
    if len(dtypes) != 1:
        raise ValueError(f"a bucket takes tensors of one dtype, found {', '.join(dtypes)}")
    shapes = tuple(operand.shape for operand in operands)
    return Collective(instruction.op.removesuffix("_start"), axes, shapes, dtypes[0], options)


def has_counts(instruction: Instruction) -> bool:
    """Whether a collective takes counts of rows behind its tensor."""
    return any(key in COUNTS for key in instruction.kwargs)


def axes_of(instruction: Instruction) -> tuple[str, ...]:
    """The axes that an instruction names; empty where it names none."""
    axes = instruction.kwargs.get("axes")
    return tuple(str(axis) for axis in axes) if isinstance(axes, list | tuple) else ()


def part_of(instruction: Instruction, index: int) -> Instruction:
    """The collective that a bucket's does for its tensor `index`; the instruction itself where it takes one tensor."""
    if instruction.op not in COALESCED:
        return instruction
    dims = instruction.kwargs.get("dims")
    own = {"dim": dims[index]} if isinstance(dims, list | tuple) else {}
    kwargs = {key: value for key, value in instruction.kwargs.items() if key != "dims"}
    return replace(instruction, op=COALESCED[instruction.op], kwargs=kwargs | own)


def result_of(instruction: Instruction, operand: Meta, mesh: RankMesh) -> Meta:
    """A member's result. Raises ValueError for a dim that does not exist, or that the group's size does not divide."""
    shape = list(operand.shape)
    size = mesh.size(axes_of(instruction))
    match instruction.op:
        case "comm.all_gather_start":
            shape[_dim(instruction, "dim", shape)] *= size
        case "comm.reduce_scatter_start":
            _split(shape, _dim(instruction, "dim", shape), size)
        case "comm.all_to_all_rows_start":
            if not shape:
                raise ValueError("a tensor without dims has no rows")
            shape[0] = _integer(instruction, "bound")
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


def storages_of_results(instruction: Instruction, metas: Sequence[Meta], path: Path) -> list[Storage]:
    """The memory of a collective's results: that of a bucket's sums is one, of which each is a window."""
    if instruction.op in COALESCED and "reduce" in instruction.kwargs:
        return [Storage(sum(meta.bytes for meta in metas), path)] * len(metas)
    return [Storage(meta.bytes, path) for meta in metas]
