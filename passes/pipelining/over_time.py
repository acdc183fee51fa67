"""Types of values over the axis of time."""

from __future__ import annotations

from dataclasses import replace

from ...ir.bindings import Type, Value
from ...ir.pipeline import MICROBATCH
from ...ir.placement import AxisPlacement, Shard
from ...ir.types import TensorType, from_mlir, is_tensor, to_mlir


def without_time(type_: Type) -> Type:
    """The type of a value that is no longer over the axis of time, of the same local shape."""
    tensor = from_mlir(type_)
    kept = tuple((axis, p) for axis, p in tensor.placement if axis != MICROBATCH)
    return to_mlir(TensorType(tensor.dtype, tensor.shape, kept, tensor.extents))


def in_time(tensor: TensorType, placement: AxisPlacement) -> TensorType:
    """The type of a value that is over the axis of time in this way, of the same local shape."""
    return replace(tensor, placement=tuple(sorted((*tensor.placement, (MICROBATCH, placement)), key=lambda p: p[0])))


def is_over_time(value: Value) -> bool:
    """Whether the value's type says that microbatches differ in it."""
    return is_tensor(value.type) and any(axis == MICROBATCH for axis, _ in from_mlir(value.type).placement)


def cut_dim(type_: Type) -> int | None:
    """The dim of a value that is cut into microbatches."""
    placement = dict(from_mlir(type_).placement).get(MICROBATCH)
    return placement.dim if isinstance(placement, Shard) else None


def whole(type_: Type, count: int) -> Type:
    """The type of a value of which all of `count` microbatches are there."""
    dim, tensor = cut_dim(type_), from_mlir(without_time(type_))
    if dim is None:
        return to_mlir(tensor)
    return grown(to_mlir(tensor), dim, count)


def grown(type_: Type, dim: int, count: int) -> Type:
    """The type of `count` values of a type behind each other along a dim."""
    tensor = from_mlir(type_)
    shape = tuple(n * count if at == dim else n for at, n in enumerate(tensor.shape))
    return to_mlir(TensorType(tensor.dtype, shape, tensor.placement, tensor.extents))
