"""Restore the leading dims of batched matrix products that torch merges into one, so that each may be sharded.

Before                                          After (B examples, H heads)
  %2 = aten.reshape %0 to (B*H, S, D)             %4 = nn.matmul %0, %1 : (B, H, S, D), (B, H, D, T)
  %3 = aten.reshape %1 to (B*H, D, T)             (%5 is %4)
  %4 = aten.bmm %2, %3
  %5 = aten.reshape %4 to (B, H, S, T)

A shard of the heads is not a shard of the merged dim B*H; nn.matmul has the dim H. If only one operand is such a
reshape, the other is reshaped; so is the result for users of the merged shape. Transposes of merged operands, which the
backward has, are handled.

Needs: level `aten`, no placements yet.   Keeps: values.   Source: attention written as products and a softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from ...ir.bindings import Value
from ...ir.module import Level, Module
from ...ir.operations import read
from ...ir.types import TensorType, from_mlir
from ..base import Pass, Report
from ..rewriting import Applied, Emitter, Outcome, Site, producer, rewrite, users

_BMM, _RESHAPE, _TRANSPOSE = "aten.bmm.default", "aten.reshape.default", "aten.transpose.int"


@dataclass(frozen=True)
class RaiseMatmuls(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "raise-matmuls"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})
    joins_layers: ClassVar[bool] = True

    def run(self, module: Module) -> Report:
        return rewrite(module, self.name, {_BMM: _raise})


@dataclass(frozen=True)
class _Unmerged:
    """The value before its leading dims were merged, and whether it was transposed afterwards."""

    value: Value
    is_transposed: bool

    @property
    def leading(self) -> tuple[int, ...]:
        return from_mlir(self.value.type).shape[:-2]


def _raise(site: Site) -> Outcome:
    op, args = site.op, site.call.args
    sources = [_unmerged(value) for value in args]
    leading = next((source.leading for source in sources if source is not None), None)
    if leading is None:
        return None
    operands = [_operand(v, source, leading, site.emitter) for v, source in zip(args, sources, strict=True)]
    type_ = TensorType(site.type.dtype, (*leading, *site.type.shape[1:]))
    product = site.emitter.op("nn.matmul", *operands, type=type_)
    _replace_unmerged_users(op.results[0], product)
    site.replace(site.emitter.op(_RESHAPE, product, list(site.type.shape), type=site.type))
    return Applied("matrix product with its dims apart")


def _unmerged(value: Value) -> _Unmerged | None:
    """The source of a value of three dims whose first dim merges two or more leading dims; None for others."""
    call, is_transposed = producer(value), False
    if call is not None and call.name == _TRANSPOSE and {int(d) % 3 for d in call.args[1:]} == {1, 2}:
        value, is_transposed = call.args[0], True
        call = producer(value)
    if call is None or call.name != _RESHAPE:
        return None
    before, after = from_mlir(call.args[0].type).shape, from_mlir(value.type).shape
    if len(before) < 4 or before[-2:] != after[1:] or prod(before[:-2]) != after[0]:
        return None
    return _Unmerged(_expanded(call.args[0]), is_transposed)


def _expanded(value: Value) -> Value:
    """The value, without an expand that keeps its shape."""
    call = producer(value)
    is_identity = call is not None and call.name == "aten.expand.default" and call.args[0].type == value.type
    return call.args[0] if call is not None and is_identity else value


def _operand(value: Value, unmerged: _Unmerged | None, leading: Sequence[int], emitter: Emitter) -> Value:
    """The operand with its leading dims unmerged."""
    type_ = from_mlir(value.type)
    type_unmerged = TensorType(type_.dtype, (*leading, *type_.shape[1:]))
    if unmerged is None or unmerged.leading != tuple(leading):
        return emitter.op(_RESHAPE, value, list(type_unmerged.shape), type=type_unmerged)
    if not unmerged.is_transposed:
        return unmerged.value
    return emitter.op(_TRANSPOSE, unmerged.value, len(leading), len(leading) + 1, type=type_unmerged)


def _replace_unmerged_users(merged: Value, product: Value) -> None:
    """Replace reshapes that unmerge the result by the product itself."""
    for user in users(merged):
        call = read(user)
        if call is not None and call.name == _RESHAPE and user.results[0].type == product.type:
            user.results[0].replace_all_uses_with(product)
