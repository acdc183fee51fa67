"""nll_loss, gather and scatter_add over sharded classes: losses that `nn.cross_entropy` does not cover.

Such are a label smoothing, weights of classes, a focal loss. Each rank holds a chunk of the classes. A score is picked
on the rank that holds its class, and others have zero there; a backward writes on the rank that holds the class.
`class_statistics` has the softmax.
"""

from __future__ import annotations

from math import prod

import torch

from ...ir.bindings import Value
from ...ir.operations import Call
from ...ir.types import TensorType, from_mlir
from .class_statistics import LOWERINGS as STATISTICS
from .vocabulary import Lowering, Vocabulary, bare, in_table

_NLL_LOSS, _NLL_LOSS_BACKWARD = "aten.nll_loss_forward.default", "aten.nll_loss_backward.default"
_NONE = 0
"""torch's number for losses that are not reduced."""


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


def _image_loss(vocabulary: Vocabulary, call: Call, types: list[TensorType]) -> list[Value]:
    """nll_loss2d: scores (N, chunk, H, W), labels (N, H, W), weights? -> this rank's terms, the whole count."""
    scores, labels, weight, reduction, ignored = call.args
    loss, count = types
    points = vocabulary.rows(_classes_last(vocabulary, scores))
    rows = Call(_NLL_LOSS, (points, vocabulary.flat(labels), weight, reduction, ignored))
    if reduction != _NONE:
        return _nll_loss(vocabulary, rows, types)
    losses, counts = _nll_loss(vocabulary, rows, [_flat_type(loss), count])
    return [vocabulary.emitter.op("aten.reshape.default", losses, list(loss.shape), type=loss), counts]


def _image_loss_backward(vocabulary: Vocabulary, call: Call, types: list[TensorType]) -> list[Value]:
    """grad, scores (N, chunk, H, W), labels (N, H, W), weights? -> the gradient of this rank's scores."""
    e = vocabulary.emitter
    grad, scores, labels, *rest = call.args
    grad = vocabulary.flat(grad) if from_mlir(grad.type).shape else grad
    last = _classes_last(vocabulary, scores)
    points = vocabulary.rows(last)
    rows = Call(_NLL_LOSS_BACKWARD, (grad, points, vocabulary.flat(labels), *rest))
    [gradient] = _nll_loss_backward(vocabulary, rows, [bare(types[0], from_mlir(points.type).shape)])
    shape = from_mlir(last.type).shape
    apart = e.op("aten.reshape.default", gradient, list(shape), type=bare(types[0], shape))
    return [e.op("aten.permute.default", apart, [0, 3, 1, 2], type=types[0])]


def _classes_last(vocabulary: Vocabulary, scores: Value) -> Value:
    """(N, chunk, H, W) as (N, H, W, chunk)."""
    type_ = from_mlir(scores.type)
    images, chunk, *points = type_.shape
    return vocabulary.emitter.op(
        "aten.permute.default", scores, [0, 2, 3, 1], type=bare(type_, (images, *points, chunk))
    )


def _gather(vocabulary: Vocabulary, call: Call, types: list[TensorType]) -> list[Value]:
    """scores (.., chunk, ..), dim, indices -> the scores of this rank's indices, zero for those of others."""
    e = vocabulary.emitter
    scores, dim, indices = call.args[:3]
    own = vocabulary.own_checked(indices)
    picked = e.op("aten.gather.default", scores, dim, own.local, type=bare(types[0], types[0].shape))
    return [e.op("aten.where.ScalarOther", own.inside, picked, 0.0, type=types[0])]


def _scatter_add(vocabulary: Vocabulary, call: Call, types: list[TensorType]) -> list[Value]:
    """base (.., chunk, ..), dim, indices, source -> the base plus the source at this rank's indices."""
    e = vocabulary.emitter
    base, dim, indices, source = call.args[:4]
    own = vocabulary.own_checked(indices)
    added = e.op("aten.where.ScalarOther", own.inside, source, 0.0, type=bare(types[0], from_mlir(source.type).shape))
    return [e.op("aten.scatter_add.default", base, dim, own.local, added, type=types[0])]


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


LOWERINGS: dict[str, Lowering] = {
    **STATISTICS,
    _NLL_LOSS: in_table(_nll_loss),
    _NLL_LOSS_BACKWARD: in_table(_nll_loss_backward),
    "aten.nll_loss2d_forward.default": in_table(_image_loss),
    "aten.nll_loss2d_backward.default": in_table(_image_loss_backward),
    "aten.gather.default": in_table(_gather),
    "aten.scatter_add.default": in_table(_scatter_add),
    "nn.nll_loss": in_table(_row_loss),
    "nn.nll_loss_backward": in_table(_row_loss_backward),
}
"""What a rank computes in place of each op over sharded classes."""
