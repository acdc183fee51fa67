"""log_softmax and nll_loss over sharded classes: losses that `nn.cross_entropy` does not cover.

Such are a label smoothing, weights of classes, a distillation loss. Each rank holds a chunk of the classes. A
log_softmax all-reduces a maximum and a sum of exponentials of each row, its backward the sum of a row's gradient. An
nll_loss picks the score of a label on the rank that holds it; its backward writes there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch

from ...ir.bindings import Value
from ...ir.operations import Call
from ...ir.types import TensorType, from_mlir
from .vocabulary import Lowering, Vocabulary, bare, cast, in_table

_NLL_LOSS, _NLL_LOSS_BACKWARD = "aten.nll_loss_forward.default", "aten.nll_loss_backward.default"
_NONE = 0
"""torch's number for losses that are not reduced."""


def _log_softmax(vocabulary: Vocabulary, call: Call, types: list[TensorType]) -> list[Value]:
    """logits (.., chunk, ..), dim -> logits - logsumexp over all ranks' classes."""
    e, dim = vocabulary.emitter, vocabulary.shards.dim
    wide = torch.promote_types(types[0].dtype, torch.float32)
    logits = cast(e, call.args[0], wide)
    whole, column = _row_types(types[0], dim, wide)
    maximum = vocabulary.all_reduced(e.op("aten.amax.default", logits, [dim], True, type=column), "max")
    shifted = e.op("aten.sub.Tensor", logits, maximum, type=whole)
    exponentials = e.op("aten.exp.default", shifted, type=whole)
    sums = vocabulary.all_reduced(e.op("aten.sum.dim_IntList", exponentials, [dim], True, type=column), "sum")
    logs = e.op("aten.log.default", sums, type=column)
    return [cast(e, e.op("aten.sub.Tensor", shifted, logs, type=replace(types[0], dtype=wide)), types[0].dtype)]


def _log_softmax_backward(vocabulary: Vocabulary, call: Call, types: list[TensorType]) -> list[Value]:
    """grad, log-probabilities (.., chunk, ..), dim -> grad - probabilities * the sum of grad over all classes."""
    e, dim = vocabulary.emitter, vocabulary.shards.dim
    wide = torch.promote_types(types[0].dtype, torch.float32)
    grad, scores = (cast(e, value, wide) for value in call.args[:2])
    whole, column = _row_types(types[0], dim, wide)
    total = vocabulary.all_reduced(e.op("aten.sum.dim_IntList", grad, [dim], True, type=column), "sum")
    probabilities = e.op("aten.exp.default", scores, type=whole)
    share = e.op("aten.mul.Tensor", probabilities, total, type=whole)
    return [cast(e, e.op("aten.sub.Tensor", grad, share, type=replace(types[0], dtype=wide)), types[0].dtype)]


def _nll_loss(vocabulary: Vocabulary, call: Call, types: list[TensorType]) -> list[Value]:
    """scores (N, chunk), labels (N), weights? -> this rank's terms of the loss, the whole count."""
    e = vocabulary.emitter
    scores, labels, weight, reduction, ignored = call.args
    loss, count = types
    picked = _Picked(vocabulary, labels, ignored, weight, loss.dtype)
    column = bare(loss, (*picked.rows.shape, 1))
    at_label = e.op("aten.gather.default", scores, 1, vocabulary.column(picked.own), type=column)
    losses = picked.weighted(e.like("aten.neg.default", e.op("aten.squeeze.dim", at_label, 1, type=picked.rows)))
    counted = e.op("aten.where.ScalarOther", picked.inside, losses, 0.0, type=picked.rows)
    if reduction == _NONE:
        counts = e.op("aten.full.default", [], 0.0, type=count, dtype=count.dtype)
        return [counted, counts]
    return [e.op("aten.sum.default", counted, type=loss), e.op("aten.sum.default", picked.counts(), type=count)]


def _nll_loss_backward(vocabulary: Vocabulary, call: Call, types: list[TensorType]) -> list[Value]:
    """grad, scores (N, chunk), labels (N), weights? -> -grad * weight at the labels of this rank's classes, else 0."""
    e, type_ = vocabulary.emitter, types[0]
    grad, _, labels, weight, _, ignored = call.args[:6]
    picked = _Picked(vocabulary, labels, ignored, weight, type_.dtype)
    ones = e.op("aten.full.default", list(picked.rows.shape), 1.0, type=picked.rows, dtype=type_.dtype)
    of_rows = picked.weighted(e.op("aten.mul.Tensor", ones, e.like("aten.neg.default", grad), type=picked.rows))
    counted = e.op("aten.where.ScalarOther", picked.inside, of_rows, 0.0, type=picked.rows)
    zeros = e.op("aten.full.default", list(type_.shape), 0.0, type=bare(type_, type_.shape), dtype=type_.dtype)
    columns = vocabulary.column(picked.own), vocabulary.column(counted)
    return [e.op("aten.scatter_add.default", zeros, 1, *columns, type=type_)]


def _row_loss(vocabulary: Vocabulary, call: Call, types: list[TensorType]) -> list[Value]:
    """scores (..., chunk), labels (...), weights? -> this rank's terms of the losses (...)."""
    e = vocabulary.emitter
    scores, labels, weight, ignored = call.args
    [loss] = types
    count = TensorType(loss.dtype, ())
    rows = Call(_NLL_LOSS, (vocabulary.rows(scores), vocabulary.flat(labels), weight, _NONE, ignored))
    losses, _ = _nll_loss(vocabulary, rows, [_flat_type(loss), count])
    return [e.op("aten.reshape.default", losses, list(loss.shape), type=loss)]


def _row_loss_backward(vocabulary: Vocabulary, call: Call, types: list[TensorType]) -> list[Value]:
    """grad (...), scores (..., chunk), labels (...), weights? -> the gradient of this rank's scores (..., chunk)."""
    e = vocabulary.emitter
    grad, scores, labels, weight, ignored = call.args
    [type_] = types
    scores, labels, grad = vocabulary.rows(scores), vocabulary.flat(labels), vocabulary.flat(grad)
    rows = Call(_NLL_LOSS_BACKWARD, (grad, scores, labels, weight, _NONE, ignored))
    [gradient] = _nll_loss_backward(vocabulary, rows, [bare(type_, from_mlir(scores.type).shape)])
    return [e.op("aten.reshape.default", gradient, list(type_.shape), type=type_)]


def _flat_type(type_: TensorType) -> TensorType:
    """One dim of rows, without a placement."""
    return bare(type_, (prod(type_.shape),))


class _Picked:
    """The labels of rows that count, and where this rank holds their classes."""

    def __init__(
        self, vocabulary: Vocabulary, labels: Value, ignored: int, weight: Value | None, dtype: torch.dtype
    ) -> None:
        self._emitter, self._weight = vocabulary.emitter, weight
        e, indices = vocabulary.emitter, from_mlir(labels.type)
        flags = bare(indices, indices.shape, torch.bool)
        self.rows = bare(indices, indices.shape, dtype)
        """The type of a number for each row."""
        self.valid = e.op("aten.ne.Scalar", labels, ignored, type=flags)
        self.labels = e.op("aten.where.ScalarOther", self.valid, labels, 0, type=indices)
        own = vocabulary.own_checked(self.labels)
        self.own = own.local
        self.inside = e.op("aten.logical_and.default", own.inside, self.valid, type=flags)

    def weighted(self, values: Value) -> Value:
        """Numbers of rows, times the weights of the rows' classes where there are any."""
        if self._weight is None:
            return values
        return self._emitter.like("aten.mul.Tensor", values, self._weights(self._weight))

    def counts(self) -> Value:
        """What each row adds to the count."""
        if self._weight is None:
            return self._emitter.op("aten._to_copy.default", self.valid, type=self.rows, dtype=self.rows.dtype)
        weights = self._weights(self._weight)
        return self._emitter.op("aten.where.ScalarOther", self.valid, weights, 0.0, type=self.rows)

    def _weights(self, weight: Value) -> Value:
        return self._emitter.op("aten.index.Tensor", weight, [self.labels], type=self.rows)


def _row_types(type_: TensorType, dim: int, dtype: torch.dtype) -> tuple[TensorType, TensorType]:
    """The local tensor's type in `dtype`, and that of one number for each row."""
    shape: Sequence[Any] = type_.shape
    return bare(type_, tuple(shape), dtype), bare(type_, (*shape[:dim], 1, *shape[dim + 1 :]), dtype)


LOWERINGS: dict[str, Lowering] = {
    "aten._log_softmax.default": in_table(_log_softmax),
    "aten._log_softmax_backward_data.default": in_table(_log_softmax_backward),
    _NLL_LOSS: in_table(_nll_loss),
    _NLL_LOSS_BACKWARD: in_table(_nll_loss_backward),
    "nn.nll_loss": in_table(_row_loss),
    "nn.nll_loss_backward": in_table(_row_loss_backward),
}
"""What a rank computes in place of each op over sharded classes."""
