"""Flatten rows with the batch first, so that a shard of the batch is a shard of the rows.

Before (T tokens, B examples)                    After
  %1 = aten.reshape %0 to (T*B, K)                 %t = aten.transpose %0, 0, 1
  %2 = aten.mm %1, %w                              %1 = aten.reshape %t to (B*T, K)
  %3 = aten.reshape %2 to (T, B, N)                %2 = aten.mm %1, %w
                                                   %u = aten.reshape %2 to (B, T, N)
                                                   %3 = aten.transpose %u, 0, 1

Torch's own attention and its transformer layers put tokens first, and a shard of the batch is not a shard of T*B. A
matrix product treats rows independently; a product or sum that contracts rows may add them in any order.

Needs: level `aten`, the batch's extent (`place-arguments`).   Keeps: values, up to the order of sums.
Cost: transposes of activations, most of which undo those that the model has (`simplify-views`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import ClassVar

from ...ir.bindings import Value
from ...ir.module import Level, Module
from ...ir.operations import Call
from ...ir.types import TensorType, from_mlir
from ..activation_sharding import ActivationSharding
from ..base import Pass, Report
from ..rewriting import Applied, Emitter, Outcome, Site, producer, rewrite

_MM, _ADDMM, _SUM = "aten.mm.default", "aten.addmm.default", "aten.sum.dim_IntList"
_RESHAPE, _T, _TRANSPOSE = "aten.reshape.default", "aten.t.default", "aten.transpose.int"


@dataclass(frozen=True)
class PutBatchFirst(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "put-batch-first"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})
    joins_layers: ClassVar[bool] = True

    def run(self, module: Module) -> Report:
        leading = ActivationSharding.of(module).leading
        if not leading:
            return Report()
        return rewrite(module, self.name, dict.fromkeys((_MM, _ADDMM, _SUM), partial(_put_first, batch=leading[0])))


@dataclass(frozen=True)
class _FlattenedRows:
    """The source of flattened rows (T*B, K): a value of shape (T, B, ..) or (T, B*H, ..)."""

    value: Value
    leading: tuple[int, int]
    """T and B."""
    width: int

    def batch_first(self, emitter: Emitter) -> Value:
        """The rows as (B*T, K)."""
        type_, (tokens, batch) = from_mlir(self.value.type), self.leading
        value, (_, second, *rest) = self.value, type_.shape
        if second != batch:
            rest = [second // batch, *rest]
            split = TensorType(type_.dtype, (tokens, batch, *rest))
            value = emitter.op(_RESHAPE, value, list(split.shape), type=split)
        transposed = emitter.op(_TRANSPOSE, value, 0, 1, type=TensorType(type_.dtype, (batch, tokens, *rest)))
        shape = (batch * tokens, self.width)
        return emitter.op(_RESHAPE, transposed, list(shape), type=TensorType(type_.dtype, shape))


def _put_first(site: Site, batch: int) -> Outcome:
    """Rewrite an operation if its rows are flattened with the batch second."""
    result = _rewritten(site, batch)
    if result is None:
        return None
    site.replace(result)
    return Applied("rows flattened with the batch first")


def _rewritten(site: Site, batch: int) -> Value | None:
    """The new value of the operation's result; None if the pattern does not apply."""
    call, emitter = site.call, site.emitter
    if call.name == _MM and (contracted := _contracted(call, batch)) is not None:
        left, right = contracted
        rows = left.batch_first(emitter)
        transposed = emitter.op(_T, rows, type=TensorType(from_mlir(rows.type).dtype, from_mlir(rows.type).shape[::-1]))
        return emitter.op(_MM, transposed, right.batch_first(emitter), type=site.type)
    index = 1 if call.name == _ADDMM else 0
    flattened = _flattened_rows(call.args[index], batch)
    if flattened is None:
        return None
    if call.name == _SUM and [int(d) % 2 for d in call.args[1] or ()] != [0]:
        return None
    if call.name == _ADDMM and len(from_mlir(call.args[0].type).shape) != 1:
        return None
    args = (*call.args[:index], flattened.batch_first(emitter), *call.args[index + 1 :])
    result = emitter.op(call.name, *args, type=site.type, **call.kwargs)
    return result if call.name == _SUM else _tokens_first(emitter, result, flattened.leading)


def _tokens_first(emitter: Emitter, value: Value, leading: tuple[int, int]) -> Value:
    """Rows of (B*T, N) as rows of (T*B, N)."""
    type_ = from_mlir(value.type)
    (tokens, batch), width = leading, type_.shape[1]
    split = emitter.op(_RESHAPE, value, [batch, tokens, width], type=TensorType(type_.dtype, (batch, tokens, width)))
    transposed = emitter.op(_TRANSPOSE, split, 0, 1, type=TensorType(type_.dtype, (tokens, batch, width)))
    return emitter.op(_RESHAPE, transposed, list(type_.shape), type=type_)


def _contracted(call: Call, batch: int) -> tuple[_FlattenedRows, _FlattenedRows] | None:
    """The two operands of a product that contracts flattened rows: the left one is transposed."""
    transposed = producer(call.args[0])
    if transposed is None or transposed.name != _T:
        return None
    left, right = _flattened_rows(transposed.args[0], batch), _flattened_rows(call.args[1], batch)
    return None if left is None or right is None or left.leading != right.leading else (left, right)


def _flattened_rows(value: Value, batch: int) -> _FlattenedRows | None:
    """The source from which a value of two dims was flattened, if the batch is the second dim of that source."""
    call = producer(value)
    if call is None or call.name != _RESHAPE:
        return None
    before, after = from_mlir(call.args[0].type).shape, from_mlir(value.type).shape
    if len(after) != 2 or len(before) < 3 or before[0] == batch or before[1] % batch:
        return None
    if before[0] * batch != after[0] or prod(before[1:]) != batch * after[1]:
        return None
    return _FlattenedRows(call.args[0], (before[0], batch), after[1])
