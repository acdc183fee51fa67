"""softmax, log_softmax and logsumexp over sharded classes: statistics of a row are all-reduced, its classes stay.

Each rank holds a chunk of the classes. Of each row, a maximum and a sum of exponentials are all-reduced; a backward
all-reduces the sum of a row's gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

import torch

from ...ir.bindings import Value
from ...ir.operations import Call
from ...ir.types import TensorType, from_mlir
from .vocabulary import Lowering, Vocabulary, bare, cast, in_table

_SUM = "aten.sum.dim_IntList"


@dataclass(frozen=True)
class _Rows:
    """Computes with a rank's chunk of each row, in float32 where the tensor has 16 bits."""

    vocabulary: Vocabulary
    whole: TensorType
    """The chunk's type, without a placement."""

    @classmethod
    def of(cls, vocabulary: Vocabulary, value: Value) -> _Rows:
        type_ = from_mlir(value.type)
        return cls(vocabulary, bare(type_, type_.shape, torch.promote_types(type_.dtype, torch.float32)))

    @property
    def column(self) -> TensorType:
        """The type of one number for each row."""
        dim, shape = self.vocabulary.shards.dim, self.whole.shape
        return bare(self.whole, (*shape[:dim], 1, *shape[dim + 1 :]))

    def wide(self, value: Value) -> Value:
        return cast(self.vocabulary.emitter, value, self.whole.dtype)

    def op(self, name: str, *args: object) -> Value:
        """An operation on chunks."""
        return self.vocabulary.emitter.op(name, *args, type=self.whole)

    def maximum(self, value: Value) -> Value:
        """The largest of each row."""
        e, column = self.vocabulary.emitter, self.column
        own = e.op("aten.amax.default", value, [self.vocabulary.shards.dim], True, type=column)
        return self.vocabulary.all_reduced(own, "max")

    def total(self, value: Value) -> Value:
        """The sum of each row."""
        own = self.vocabulary.emitter.op(_SUM, value, [self.vocabulary.shards.dim], True, type=self.column)
        return self.vocabulary.all_reduced(own, "sum")

    def ended(self, name: str, first: Value, second: Value, type_: TensorType) -> list[Value]:
        """The last operation, whose result has the placement of `type_` and is cast to its dtype."""
        e = self.vocabulary.emitter
        return [cast(e, e.op(name, first, second, type=replace(type_, dtype=self.whole.dtype)), type_.dtype)]


def _log_softmax(vocabulary: Vocabulary, call: Call, types: list[TensorType]) -> list[Value]:
    """logits (.., chunk, ..), dim -> logits - logsumexp over all ranks' classes."""
    rows = _Rows.of(vocabulary, call.args[0])
    logits = rows.wide(call.args[0])
    shifted = rows.op("aten.sub.Tensor", logits, rows.maximum(logits))
    sums = rows.total(rows.op("aten.exp.default", shifted))
    return rows.ended("aten.sub.Tensor", shifted, vocabulary.emitter.like("aten.log.default", sums), types[0])


def _log_softmax_backward(vocabulary: Vocabulary, call: Call, types: list[TensorType]) -> list[Value]:
    """grad, log-probabilities (.., chunk, ..), dim -> grad - probabilities * the sum of grad over all classes."""
    rows = _Rows.of(vocabulary, call.args[0])
    grad, scores = (rows.wide(value) for value in call.args[:2])
    total = rows.total(grad)
    share = rows.op("aten.mul.Tensor", rows.op("aten.exp.default", scores), total)
    return rows.ended("aten.sub.Tensor", grad, share, types[0])


def _softmax(vocabulary: Vocabulary, call: Call, types: list[TensorType]) -> list[Value]:
    """logits (.., chunk, ..), dim -> exponentials over their sum over all ranks' classes."""
    rows = _Rows.of(vocabulary, call.args[0])
    logits = rows.wide(call.args[0])
    exponentials = rows.op("aten.exp.default", rows.op("aten.sub.Tensor", logits, rows.maximum(logits)))
    return rows.ended("aten.div.Tensor", exponentials, rows.total(exponentials), types[0])


def _softmax_backward(vocabulary: Vocabulary, call: Call, types: list[TensorType]) -> list[Value]:
    """grad, probabilities (.., chunk, ..), dim -> probabilities * (grad - the sum of grad * probabilities)."""
    rows = _Rows.of(vocabulary, call.args[0])
    grad, chances = (rows.wide(value) for value in call.args[:2])
    total = rows.total(rows.op("aten.mul.Tensor", grad, chances))
    return rows.ended("aten.mul.Tensor", chances, rows.op("aten.sub.Tensor", grad, total), types[0])


def _logsumexp(vocabulary: Vocabulary, call: Call, types: list[TensorType]) -> list[Value]:
    """logits (.., chunk, ..), dims -> the logarithm of the sum of all ranks' exponentials; -inf where all are -inf."""
    e, rows = vocabulary.emitter, _Rows.of(vocabulary, call.args[0])
    logits = rows.wide(call.args[0])
    highest = rows.maximum(logits)
    flags = bare(rows.column, rows.column.shape, torch.bool)
    is_infinite = e.op("aten.eq.Scalar", e.like("aten.abs.default", highest), inf, type=flags)
    finite = e.like("aten.masked_fill.Scalar", highest, is_infinite, 0.0)
    sums = rows.total(rows.op("aten.exp.default", rows.op("aten.sub.Tensor", logits, finite)))
    total = cast(e, e.like("aten.add.Tensor", e.like("aten.log.default", sums), finite), types[0].dtype)
    return [e.op("aten.reshape.default", total, list(types[0].shape), type=types[0])]


LOWERINGS: dict[str, Lowering] = {
    "aten._log_softmax.default": in_table(_log_softmax),
    "aten._log_softmax_backward_data.default": in_table(_log_softmax_backward),
    "aten._softmax.default": in_table(_softmax),
    "aten._softmax_backward_data.default": in_table(_softmax_backward),
    "aten.logsumexp.default": in_table(_logsumexp),
}
"""What a rank computes in place of each op over sharded classes."""
