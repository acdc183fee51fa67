"""Tensors whose first dim merges several: their rows, which a pass takes apart again.

Before (B examples, S tokens)                  Taken apart
  %1 = aten.reshape %x to (B*S, V)               %x, of dims (B, S) and V
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ...ir.bindings import Value
from ...ir.dim_groups import dim_groups
from ...ir.operations import Call, read
from ...ir.types import TensorType, from_mlir
from ..rewriting import Emitter, producer, users

RESHAPE = "aten.reshape.default"
_EXPAND = "aten.expand.default"
_FILLED = ("aten.full.default", "aten.zeros.default", "aten.ones.default")
FILLED_LIKE = ("aten.new_full.default", "aten.new_zeros.default", "aten.new_ones.default")
"""Ops whose first argument, or behind a tensor the second, is the shape of their result, whose elements are equal."""

Dims = tuple[int, ...]


@dataclass(frozen=True)
class Merged:
    """A tensor whose first dim merges `dims`, and the value that it was reshaped from."""

    source: Value
    dims: Dims

    def matrix(self, emitter: Emitter) -> Value:
        """The source with these dims in place of its rows, and all others as one."""
        rest = prod(from_mlir(self.source.type).shape[len(self.dims) :])
        return reshaped(emitter, self.source, (*self.dims, rest))


def merged(value: Value) -> Merged | None:
    """How a value was reshaped, if its first dim merges two or more; None for others."""
    call = producer(value)
    if call is None or call.name != RESHAPE:
        return None
    before, after = from_mlir(call.args[0].type).shape, from_mlir(value.type).shape
    if not after or 0 in before:
        return None
    for outer, into in dim_groups(before, after):
        if into == (0,) and len(outer) > 1:
            return Merged(call.args[0], before[: outer[-1] + 1])
    return None


def first_merged(values: Sequence[Value]) -> Merged | None:
    """How the first of some values was reshaped whose first dim merges several."""
    return next((found for value in values if (found := merged(value)) is not None), None)


def apart(emitter: Emitter, value: Value, dims: Dims) -> Value:
    """A value with `dims` in place of its first dim; what a computation of its size fills is made in that shape."""
    type_, call = from_mlir(value.type), producer(value)
    shape = (*dims, *type_.shape[1:])
    if call is not None and call.name == RESHAPE:
        return reshaped(emitter, call.args[0], shape)
    made = None if call is None else _made(emitter, call, shape)
    if made is None:
        return reshaped(emitter, value, shape)
    return emitter.op(made.name, *made.args, type=TensorType(type_.dtype, shape), **made.kwargs)


def _made(emitter: Emitter, call: Call, shape: Dims) -> Call | None:
    """The call that makes a value of equal or random elements, or repeats one along its first dim, in another shape."""
    if call.name in _FILLED:
        return Call(call.name, (list(shape), *call.args[1:]), call.kwargs)
    if call.name in FILLED_LIKE:
        return Call(call.name, (call.args[0], list(shape), *call.args[2:]), call.kwargs)
    if call.name == _EXPAND:
        repeated, sizes = from_mlir(call.args[0].type).shape, call.args[1]
        if len(repeated) < len(sizes):
            return Call(_EXPAND, (call.args[0], list(shape)))
        if repeated[0] == 1:
            ones = (1,) * (len(shape) - len(sizes))
            return Call(_EXPAND, (reshaped(emitter, call.args[0], (*ones, *repeated)), list(shape)))
    return None


def reshaped(emitter: Emitter, value: Value, shape: Sequence[int]) -> Value:
    """A value in another shape; where it was reshaped from that shape, what it was reshaped from."""
    type_ = from_mlir(value.type)
    if type_.shape == tuple(shape):
        return value
    source = producer(value)
    if source is not None and source.name == RESHAPE and from_mlir(source.args[0].type).shape == tuple(shape):
        return source.args[0]
    return emitter.op(RESHAPE, value, list(shape), type=TensorType(type_.dtype, tuple(shape)))


def replace_taken_apart(merged_value: Value, apart_value: Value) -> None:
    """Replace the reshapes of a merged result that split its rows again by the value with its dims apart."""
    for user in users(merged_value):
        call = read(user)
        if call is not None and call.name == RESHAPE and user.results[0].type == apart_value.type:
            user.results[0].replace_all_uses_with(apart_value)


def type_apart(type_: TensorType, dims: Dims) -> TensorType:
    """The type with `dims` in place of its first dim."""
    return TensorType(type_.dtype, (*dims, *type_.shape[1:]))
