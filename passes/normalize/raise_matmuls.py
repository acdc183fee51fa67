"""Give batched matrix products back the dims that torch merges into one, so that any of them may be sharded.

Before                                          After (B examples, H heads)
  %2 = aten.reshape %0 to (B*H, S, D)             %4 = nn.matmul %0, %1 : (B, H, S, D), (B, H, D, T)
  %3 = aten.reshape %1 to (B*H, D, T)             (%5 is %4)
  %4 = aten.bmm %2, %3
  %5 = aten.reshape %4 to (B, H, S, T)

A rank that holds some heads of every example cannot say so of B*H merged; of nn.matmul it can. Where only one operand
is such a reshape, the other is reshaped; so is the result where a user wants it merged. Transposes of merged operands
are looked through, which the backward has.

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

    def run(self, module: Module) -> Report:
        return rewrite(module, self.name, {_BMM: _raise})


@dataclass(frozen=True)
class _Apart:
    """A value before its leading dims were merged, and whether it was transposed after."""

    value: Value
    is_transposed: bool

    @property
    def leading(self) -> tuple[int, ...]:
        return from_mlir(self.value.type).shape[:-2]


def _raise(site: Site) -> Outcome:
    op, args = site.op, site.call.args
    found = [_apart(value) for value in args]
    leading = next((apart.leading for apart in found if apart is not None), None)
    if leading is None:
        return None
    operands = [_operand(v, apart, leading, site.emitter) for v, apart in zip(args, found, strict=True)]
    type_ = TensorType(site.type.dtype, (*leading, *site.type.shape[1:]))
    product = site.emitter.op("nn.matmul", *operands, type=type_)
    _replace_taken_apart(op.results[0], product)
    site.replace(site.emitter.op(_RESHAPE, product, list(site.type.shape), type=site.type))
    return Applied("matrix product with its dims apart")


def _apart(value: Value) -> _Apart | None:
    """What a value of three dims was before two or more leading dims were merged into its first."""
    made, is_transposed = producer(value), False
    if made is not None and made.name == _TRANSPOSE and {int(d) % 3 for d in made.args[1:]} == {1, 2}:
        value, is_transposed = made.args[0], True
        made = producer(value)
    if made is None or made.name != _RESHAPE:
        return None
    before, after = from_mlir(made.args[0].type).shape, from_mlir(value.type).shape
    if len(before) < 4 or before[-2:] != after[1:] or prod(before[:-2]) != after[0]:
        return None
    return _Apart(_expanded(made.args[0]), is_transposed)


def _expanded(value: Value) -> Value:
    """The value, or what was expanded to the shape that it had."""
    made = producer(value)
    idle = made is not None and made.name == "aten.expand.default" and made.args[0].type == value.type
    return made.args[0] if made is not None and idle else value


def _operand(value: Value, apart: _Apart | None, leading: Sequence[int], emitter: Emitter) -> Value:
    """The operand with its leading dims apart."""
    type_ = from_mlir(value.type)
    wanted = TensorType(type_.dtype, (*leading, *type_.shape[1:]))
    if apart is None or apart.leading != tuple(leading):
        return emitter.op(_RESHAPE, value, list(wanted.shape), type=wanted)
    if not apart.is_transposed:
        return apart.value
    return emitter.op(_TRANSPOSE, apart.value, len(leading), len(leading) + 1, type=wanted)


def _replace_taken_apart(merged: Value, product: Value) -> None:
    """Let users that take the merged result apart have the product itself."""
    for user in users(merged):
        call = read(user)
        if call is not None and call.name == _RESHAPE and user.results[0].type == product.type:
            user.results[0].replace_all_uses_with(product)
