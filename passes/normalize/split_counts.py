"""Write the count of a loss's targets apart from the loss, so that it is there before the loss is.

Before                                                 After
  %t, %n, %l = nn.cross_entropy %logits, %labels         %v = aten.ne.Scalar %labels, ignore_index
  %1 = aten.div %t, %n                                   %n = aten.sum %v
                                                         %t, %_, %l = nn.cross_entropy %logits, %labels
                                                         %1 = aten.div %t, %n

A mean loss of the whole batch divides by the targets that count in all of it. These depend on the inputs alone, so that
a pipeline knows their number before its first microbatch has run. A mean that torch takes inside of `nll_loss`, of
classes with weights, becomes a sum and a division too.

Needs: level `aten`, idioms raised.   Keeps: values.   Cost: two small operations more per loss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ...ir.bindings import Location, Operation, Value, mlir
from ...ir.dialects.context import context
from ...ir.locations import from_location
from ...ir.module import Level, Module, operations
from ...ir.operations import Call, build, read
from ...ir.types import TensorType, from_mlir, to_mlir
from ..base import Pass, Report
from ..counted_remarks import Tally
from .idioms.cross_entropy import MEAN, NLL_LOSS, NLL_LOSS_BACKWARD, SUM

CROSS_ENTROPY = "nn.cross_entropy"


@dataclass(frozen=True)
class SplitCounts(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "split-counts"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})

    def run(self, module: Module) -> Report:
        count, tally = 0, Tally(self.name)
        for function in module.functions().values():
            for op in operations(function):
                call = read(op)
                if call is None or call.name not in _REWRITES:
                    continue
                origin = from_location(op.location)
                with context(), mlir.InsertionPoint(op):
                    if _REWRITES[call.name](op, call):
                        count += 1
                        tally.applied("targets counted apart from the loss", origin)
        return Report(count, tally.remarks())


def _cross_entropy(op: Operation, call: Call) -> bool:
    _, labels, ignored = call.args
    op.results[1].replace_all_uses_with(_count(labels, ignored, None, from_mlir(op.results[1].type), op.location))
    return True


def _nll_loss(op: Operation, call: Call) -> bool:
    """self, target, weight?, reduction, ignore_index -> (loss, count): a mean becomes a sum and a division."""
    scores, labels, weight, reduction, ignored = call.args
    types = [result.type for result in op.results]
    count = _count(labels, ignored, weight, from_mlir(types[1]), op.location)
    if reduction not in (MEAN, SUM):  # nobody reads a count then, but the backward is given one
        op.results[1].replace_all_uses_with(count)
        return True
    loss, _ = build(Call(call.name, (scores, labels, weight, SUM, ignored)), types, op.location)
    if reduction == MEAN:
        loss = _op("aten.div.Tensor", loss, count, type=from_mlir(types[0]), loc=op.location)
    for old, new in zip(op.results, (loss, count), strict=True):
        old.replace_all_uses_with(new)
    op.operation.erase()
    return True


def _nll_loss_backward(op: Operation, call: Call) -> bool:
    """grad, self, target, weight?, reduction, ignore_index, count -> the gradient: of a mean, that of its sum."""
    grad, scores, labels, weight, reduction, ignored, count = call.args
    if reduction != MEAN:
        return False
    scaled = _op("aten.div.Tensor", grad, count, type=from_mlir(grad.type), loc=op.location)
    given = (scaled, scores, labels, weight, SUM, ignored, count)
    [made] = build(Call(call.name, given), [op.results[0].type], op.location)
    op.results[0].replace_all_uses_with(made)
    op.operation.erase()
    return True


_REWRITES = {
    CROSS_ENTROPY: _cross_entropy,
    **dict.fromkeys((NLL_LOSS, "aten.nll_loss2d_forward.default"), _nll_loss),
    **dict.fromkeys((NLL_LOSS_BACKWARD, "aten.nll_loss2d_backward.default"), _nll_loss_backward),
}


def _count(labels: Value, ignored: int, weight: Value | None, type_: TensorType, loc: Location) -> Value:
    """How many labels are not ignored, or the sum of their classes' weights: a number of type `type_`."""
    indices = from_mlir(labels.type)
    flags = replace(indices, dtype=torch.bool)
    if weight is None:
        valid = _op("aten.ne.Scalar", labels, ignored, type=flags, loc=loc)
        return _op("aten.sum.default", valid, type=type_, loc=loc, dtype=type_.dtype)
    left_out = _op("aten.eq.Scalar", labels, ignored, type=flags, loc=loc)
    classes = _op("aten.masked_fill.Scalar", labels, left_out, 0, type=indices, loc=loc)
    each = replace(indices, dtype=from_mlir(weight.type).dtype)
    picked = _op("aten.index.Tensor", weight, [classes], type=each, loc=loc)
    counted = _op("aten.masked_fill.Scalar", picked, left_out, 0.0, type=each, loc=loc)
    return _op("aten.sum.default", counted, type=type_, loc=loc)


def _op(name: str, *args: Any, type: TensorType, loc: Location, **kwargs: Any) -> Value:
    [result] = build(Call(name, args, kwargs), [to_mlir(type)], loc)
    return result
