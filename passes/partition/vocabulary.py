"""Ops over a sharded vocabulary: each rank holds a chunk of the classes and handles the indices in it.

The rank that holds rows [offset, offset + chunk) of an embedding looks up those indices and returns zero for the
others, so that the sum over ranks is the embedding. Cross-entropy all-reduces a maximum, a sum of exponentials and the
label's logit over the axis, and no rank ever holds all logits of a token.

Source: Megatron-LM (arXiv:1909.08053), section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import torch

from ...ir.bindings import Value
from ...ir.collectives import ALL_REDUCE
from ...ir.operations import Call
from ...ir.placement import Placement
from ...ir.types import TensorType, from_mlir
from .emitter import LocalEmitter, Shards, Types

_RESHAPE = "aten.reshape.default"


@dataclass(frozen=True)
class _OwnIndices:
    """Which indices are in this rank's chunk: `inside` (bool), and `local`, the index within the chunk or 0."""

    inside: Value
    local: Value


class Vocabulary:
    """Builds what a rank computes with its chunk of the classes."""

    def __init__(self, emitter: LocalEmitter, shards: Shards) -> None:
        self.emitter = emitter
        self.shards = shards

    def own(self, indices: Value) -> _OwnIndices:
        """This rank's indices, local to its chunk."""
        shifted, inside = self._shifted(indices)
        zero = self.emitter.op("aten.where.ScalarOther", inside, shifted, 0, type=from_mlir(indices.type))
        return _OwnIndices(inside, zero)

    def own_checked(self, indices: Value) -> _OwnIndices:
        """As `own`, but an index outside of the vocabulary becomes one that the local lookup refuses."""
        e, type_ = self.emitter, from_mlir(indices.type)
        flags = replace(type_, dtype=torch.bool)
        shifted, in_chunk = self._shifted(indices)
        low = e.op("aten.ge.Scalar", indices, 0, type=flags)
        high = e.op("aten.lt.Scalar", indices, self.shards.extent, type=flags)
        valid = e.op("aten.logical_and.default", low, high, type=flags)
        inside = e.op("aten.logical_and.default", in_chunk, valid, type=flags)
        invalid = e.op("aten.logical_not.default", valid, type=flags)
        invalid_flag = e.op("aten._to_copy.default", invalid, type=type_, dtype=type_.dtype)
        invalid_index = e.op("aten.mul.Scalar", invalid_flag, self.shards.chunk, type=type_)
        return _OwnIndices(inside, e.op("aten.where.self", inside, shifted, invalid_index, type=type_))

    def _shifted(self, indices: Value) -> tuple[Value, Value]:
        """The indices relative to this rank's chunk, and which of them are in it (padding included)."""
        e, chunk = self.emitter, self.shards.chunk
        flags = replace(from_mlir(indices.type), dtype=torch.bool)
        offset = e.op("comm.offset", list(self.shards.axes), chunk, type=TensorType(torch.int64, ()))
        shifted = e.like("aten.sub.Tensor", indices, offset)
        low = e.op("aten.ge.Scalar", shifted, 0, type=flags)
        high = e.op("aten.lt.Scalar", shifted, chunk, type=flags)
        return shifted, e.op("aten.logical_and.default", low, high, type=flags)

    def all_reduced(self, value: Value, reduce: str) -> Value:
        """All-reduce over the vocabulary's axes."""
        return self.emitter.like(ALL_REDUCE, value, list(self.shards.axes), reduce)

    def column(self, value: Value) -> Value:
        """(N,) as (N, 1)."""
        type_ = from_mlir(value.type)
        return self.emitter.op("aten.unsqueeze.default", value, 1, type=bare(type_, (*type_.shape, 1)))

    def rows(self, logits: Value) -> Value:
        """(..., V) as (N, V)."""
        type_ = from_mlir(logits.type)
        if len(type_.shape) == 2:
            return logits
        shape = (prod(type_.shape[:-1]), type_.shape[-1])
        bare = TensorType(type_.dtype, shape, extents=(shape[0], self.shards.extent))
        placed = bare.placed(Placement(((), self.shards.axes)), self.emitter.mesh)
        return self.emitter.op(_RESHAPE, logits, list(shape), type=placed)

    def flat(self, value: Value) -> Value:
        """(...) as (N,)."""
        type_ = from_mlir(value.type)
        if len(type_.shape) == 1:
            return value
        count = prod(type_.shape)
        return self.emitter.op(_RESHAPE, value, [count], type=bare(type_, (count,)))


def bare(type_: TensorType, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> TensorType:
    """A type of this shape without placements, of the dtype of `type_` where none is given."""
    return TensorType(dtype or type_.dtype, shape)


def _embedding(vocabulary: Vocabulary, call: Call, types: list[TensorType]) -> list[Value]:
    """(chunk, hidden), (...) -> (..., hidden), zero where another rank holds the index."""
    e = vocabulary.emitter
    weight, indices = call.args[:2]
    own = vocabulary.own_checked(indices)
    looked_up = e.op("aten.embedding.default", weight, own.local, *call.args[2:], type=bare(types[0], types[0].shape))
    shape = (*from_mlir(indices.type).shape, 1)
    inside = e.op("aten.unsqueeze.default", own.inside, -1, type=TensorType(torch.bool, shape))
    return [e.op("aten.where.ScalarOther", inside, looked_up, 0.0, type=types[0])]


def _embedding_backward(vocabulary: Vocabulary, call: Call, types: list[TensorType]) -> list[Value]:
    """(..., hidden), (...) -> (chunk, hidden): other ranks' and padding indices go to an extra row, sliced off."""
    e, chunk = vocabulary.emitter, vocabulary.shards.chunk
    grad, indices, _, padding, by_frequency = call.args
    if by_frequency:
        raise RuntimeError("scale_grad_by_freq over a sharded vocabulary has no rule")
    own = vocabulary.own(indices)
    counted = own.inside
    if padding >= 0:
        flags = replace(from_mlir(indices.type), dtype=torch.bool)
        counted = e.like("aten.logical_and.default", counted, e.op("aten.ne.Scalar", indices, padding, type=flags))
    target = e.op("aten.where.ScalarOther", counted, own.local, chunk, type=from_mlir(indices.type))
    hidden = types[0].shape[1:]
    padded = e.op(
        "aten.embedding_dense_backward.default",
        grad, target, chunk + 1, chunk, False,
        type=bare(types[0], (chunk + 1, *hidden)),
    )  # fmt: skip
    return [e.op("aten.slice.Tensor", padded, 0, 0, chunk, type=types[0])]


def _cross_entropy(vocabulary: Vocabulary, call: Call, types: list[TensorType]) -> list[Value]:
    """logits (..., chunk), labels (...) -> (total, count, logsumexp (...)), the same on all ranks."""
    e = vocabulary.emitter
    logits, labels, ignore = call.args
    logits, labels = vocabulary.rows(logits), vocabulary.flat(labels)
    total_type, count_type, final_type = types
    lse_type = final_type if len(final_type.shape) == 1 else bare(final_type, (prod(final_type.shape),))
    logits = cast(e, logits, lse_type.dtype)
    row_type, column = bare(lse_type, lse_type.shape), bare(lse_type, (*lse_type.shape, 1))
    logits_type = bare(lse_type, from_mlir(logits.type).shape)
    maximum = vocabulary.all_reduced(e.op("aten.amax.default", logits, [1], True, type=column), "max")
    shifted = e.op("aten.sub.Tensor", logits, maximum, type=logits_type)
    exponentials = e.op("aten.exp.default", shifted, type=logits_type)
    sums = vocabulary.all_reduced(e.op("aten.sum.dim_IntList", exponentials, [1], False, type=row_type), "sum")
    logs = e.op("aten.log.default", sums, type=row_type)
    base = e.op("aten.squeeze.dim", maximum, 1, type=row_type)
    lse = e.op("aten.add.Tensor", logs, base, type=lse_type)
    valid = e.op("aten.ne.Scalar", labels, ignore, type=TensorType(torch.bool, lse_type.shape))
    counted_labels = e.op("aten.where.ScalarOther", valid, labels, 0, type=from_mlir(labels.type))
    own = vocabulary.own_checked(counted_labels)
    picked = e.op("aten.gather.default", logits, 1, vocabulary.column(own.local), type=column)
    local = e.op(
        "aten.where.ScalarOther", own.inside, e.op("aten.squeeze.dim", picked, 1, type=row_type), 0.0, type=row_type
    )
    label_logit = vocabulary.all_reduced(local, "sum")
    losses = e.op("aten.sub.Tensor", lse, label_logit, type=row_type)
    counted = e.op("aten.where.ScalarOther", valid, losses, 0.0, type=row_type)
    total = e.op("aten.sum.default", counted, type=total_type)
    count = e.op("aten.sum.default", valid, type=count_type, dtype=count_type.dtype)
    if lse_type != final_type:
        lse = e.op(_RESHAPE, lse, list(final_type.shape), type=final_type)
    return [total, count, lse]


def _cross_entropy_backward(vocabulary: Vocabulary, call: Call, types: list[TensorType]) -> list[Value]:
    """scale, logits (..., chunk), labels, logsumexp (...) -> (softmax - onehot) * scale, zero in ignored rows."""
    e = vocabulary.emitter
    scale, logits, labels, lse, ignore = call.args
    logits, labels, lse = vocabulary.rows(logits), vocabulary.flat(labels), vocabulary.flat(lse)
    final_type, rows_shape = types[0], from_mlir(logits.type).shape
    rows_type = final_type if final_type.shape == rows_shape else bare(final_type, rows_shape)
    type_ = replace(rows_type, dtype=from_mlir(lse.type).dtype)
    logits = cast(e, logits, type_.dtype)
    plain = bare(type_, type_.shape)
    column = bare(type_, (type_.shape[0], 1))
    own = vocabulary.own(labels)
    softmax = e.op("aten.exp.default", e.op("aten.sub.Tensor", logits, vocabulary.column(lse), type=plain), type=plain)
    onehot_label = e.op("aten._to_copy.default", own.inside, type=bare(type_, type_.shape[:1]), dtype=type_.dtype)
    minus_one = e.like("aten.neg.default", vocabulary.column(onehot_label))
    difference = e.op("aten.scatter_add.default", softmax, 1, vocabulary.column(own.local), minus_one, type=plain)
    valid = e.op("aten.ne.Scalar", labels, ignore, type=TensorType(torch.bool, type_.shape[:1]))
    weight = e.op("aten.where.ScalarOther", vocabulary.column(valid), scale, 0.0, type=column)
    gradient = cast(e, e.op("aten.mul.Tensor", difference, weight, type=type_), final_type.dtype)
    if rows_type != final_type:
        gradient = e.op(_RESHAPE, gradient, list(final_type.shape), type=final_type)
    return [gradient]


def cast(e: LocalEmitter, value: Value, dtype: torch.dtype) -> Value:
    """The value in `dtype`: sums over a vocabulary are taken in float32 where logits have 16 bits."""
    type_ = from_mlir(value.type)
    return (
        value
        if type_.dtype == dtype
        else e.op("aten._to_copy.default", value, type=replace(type_, dtype=dtype), dtype=dtype)
    )


Lowering = Callable[[LocalEmitter, Call, Shards, Types], list[Value | None]]
"""Builds what a rank computes in place of an op, of local types, and returns its results."""


def in_table(made: Callable[[Vocabulary, Call, list[TensorType]], list[Value]]) -> Lowering:
    """A lowering in the form of the table: none of its results may be absent."""

    def lowered(emitter: LocalEmitter, call: Call, shards: Shards, types: Types) -> list[Value | None]:
        return [*made(Vocabulary(emitter, shards), call, [t for t in types if t is not None])]

    return lowered


LOWERINGS: dict[str, Lowering] = {
    "aten.embedding.default": in_table(_embedding),
    "aten.embedding_dense_backward.default": in_table(_embedding_backward),
    "nn.cross_entropy": in_table(_cross_entropy),
    "nn.cross_entropy_backward": in_table(_cross_entropy_backward),
}
"""What a rank computes in place of each op over a sharded vocabulary."""
