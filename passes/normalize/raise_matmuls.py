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

from ...ir.bindings import Operation, Value, mlir
from ...ir.dialects.context import context
from ...ir.locations import from_location
from ...ir.module import Level, Module, operations
from ...ir.operations import Call, build, read
from ...ir.types import TensorType, from_mlir, to_mlir
from ..base import Pass, Report
from ..counted_remarks import Tally

_BMM, _RESHAPE, _TRANSPOSE = "aten.bmm.default", "aten.reshape.default", "aten.transpose.int"


@dataclass(frozen=True)
class RaiseMatmuls(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "raise-matmuls"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})

    def run(self, module: Module) -> Report:
        count, tally = 0, Tally(self.name)
        for function in module.functions().values():
            for op in operations(function):
                call = read(op)
                origin = from_location(op.location)
                if call is not None and call.name == _BMM and _raise(op, call):
                    count += 1
                    tally.applied("matrix product with its dims apart", origin)
        return Report(count, tally.remarks())


@dataclass(frozen=True)
class _Apart:
    """A value before its leading dims were merged, and whether it was transposed after."""

    value: Value
    is_transposed: bool

    @property
    def leading(self) -> tuple[int, ...]:
        return from_mlir(self.value.type).shape[:-2]


def _raise(op: Operation, call: Call) -> bool:
    found = [_apart(value) for value in call.args]
    leading = next((each.leading for each in found if each is not None), None)
    if leading is None:
        return False
    with context(), mlir.InsertionPoint(op):
        operands = [_operand(v, each, leading, op) for v, each in zip(call.args, found, strict=True)]
        made = from_mlir(op.results[0].type)
        type_ = to_mlir(TensorType(made.dtype, (*leading, *made.shape[1:])))
        [product] = build(Call("nn.matmul", tuple(operands)), [type_], op.location)
        _replace(op.results[0], product, op)
    op.operation.erase()
    return True


def _apart(value: Value) -> _Apart | None:
    """What a value of three dims was before two or more leading dims were merged into its first."""
    made, is_transposed = _made_by(value), False
    if made is not None and made.name == _TRANSPOSE and {int(d) % 3 for d in made.args[1:]} == {1, 2}:
        value, is_transposed = made.args[0], True
        made = _made_by(value)
    if made is None or made.name != _RESHAPE:
        return None
    before, after = from_mlir(made.args[0].type).shape, from_mlir(value.type).shape
    if len(before) < 4 or before[-2:] != after[1:] or prod(before[:-2]) != after[0]:
        return None
    return _Apart(_expanded(made.args[0]), is_transposed)


def _expanded(value: Value) -> Value:
    """The value, or what was expanded to the shape that it had."""
    made = _made_by(value)
    idle = made is not None and made.name == "aten.expand.default" and made.args[0].type == value.type
    return made.args[0] if made is not None and idle else value


def _operand(value: Value, apart: _Apart | None, leading: Sequence[int], op: Operation) -> Value:
    """The operand with its leading dims apart."""
    type_ = from_mlir(value.type)
    wanted = to_mlir(TensorType(type_.dtype, (*leading, *type_.shape[1:])))
    if apart is None or apart.leading != tuple(leading):
        [made] = build(Call(_RESHAPE, (value, [*leading, *type_.shape[1:]])), [wanted], op.location)
        return made
    if not apart.is_transposed:
        return apart.value
    [made] = build(Call(_TRANSPOSE, (apart.value, len(leading), len(leading) + 1)), [wanted], op.location)
    return made


def _replace(old: Value, product: Value, op: Operation) -> None:
    """Let users that take the result apart have the product, and others the product merged."""
    for use in list(old.uses):
        user = use.owner
        call = read(user)
        if call is not None and call.name == _RESHAPE and user.results[0].type == product.type:
            user.results[0].replace_all_uses_with(product)
    shape = list(from_mlir(old.type).shape)
    [merged] = build(Call(_RESHAPE, (product, shape)), [old.type], op.location)
    old.replace_all_uses_with(merged)


def _made_by(value: Value) -> Call | None:
    """The call whose one result the value is."""
    owner = value.owner
    return None if isinstance(owner, mlir.Block) or len(owner.results) != 1 else read(owner)
