"""Compute the count of a loss's targets separately from the loss, so that it is known before the loss.

Before                                                 After
  %t, %n, %l = nn.cross_entropy %logits, %labels         %v = aten.ne.Scalar %labels, ignore_index
  %1 = aten.div %t, %n                                   %n = aten.sum %v
                                                         %t, %_, %l = nn.cross_entropy %logits, %labels
                                                         %1 = aten.div %t, %n

A mean loss of the global batch divides by the number of its targets that are not ignored. That count depends on the
inputs alone, so a pipeline can compute it before its first microbatch. A mean inside `nll_loss` with class weights also
becomes a sum and a division.

Needs: level `aten`, idioms raised.   Keeps: values.   Cost: two small operations more per loss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ...ir.bindings import Value
from ...ir.module import Level, Module
from ...ir.operations import Call, build
from ...ir.types import TensorType, from_mlir
from ..base import Pass, Report
from ..rewriting import Applied, Emitter, Outcome, Site, rewrite
from .idioms.cross_entropy import MEAN, NLL_LOSS, NLL_LOSS_BACKWARD, SUM

CROSS_ENTROPY = "nn.cross_entropy"
_APPLIED = Applied("targets counted apart from the loss")


@dataclass(frozen=True)
class SplitCounts(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "split-counts"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})

    def run(self, module: Module) -> Report:
        return rewrite(module, self.name, _PATTERNS)


def _cross_entropy(site: Site) -> Outcome:
    _, labels, ignored = site.call.args
    counted = site.op.results[1]
    counted.replace_all_uses_with(_count(site.emitter, labels, ignored, None, from_mlir(counted.type)))
    return _APPLIED


def _nll_loss(site: Site) -> Outcome:
    """self, target, weight?, reduction, ignore_index -> (loss, count): a mean becomes a sum and a division."""
    scores, labels, weight, reduction, ignored = site.call.args
    types = [result.type for result in site.op.results]
    count = _count(site.emitter, labels, ignored, weight, from_mlir(types[1]))
    if reduction not in (MEAN, SUM):  # no user needs the count then, but the backward takes it as an operand
        site.op.results[1].replace_all_uses_with(count)
        return _APPLIED
    loss, _ = build(Call(site.call.name, (scores, labels, weight, SUM, ignored)), types, site.op.location)
    if reduction == MEAN:
        loss = site.emitter.op("aten.div.Tensor", loss, count, type=site.type)
    site.replace(loss, count)
    return _APPLIED


def _nll_loss_backward(site: Site) -> Outcome:
    """grad, self, target, weight?, reduction, ignore_index, count -> the gradient: of a mean, by that of a sum."""
    grad, scores, labels, weight, reduction, ignored, count = site.call.args
    if reduction != MEAN:
        return None
    scaled = site.emitter.like("aten.div.Tensor", grad, count)
    args = (scaled, scores, labels, weight, SUM, ignored, count)
    site.replace(site.emitter.op(site.call.name, *args, type=site.type))
    return _APPLIED


_PATTERNS = {
    CROSS_ENTROPY: _cross_entropy,
    **dict.fromkeys((NLL_LOSS, "aten.nll_loss2d_forward.default"), _nll_loss),
    **dict.fromkeys((NLL_LOSS_BACKWARD, "aten.nll_loss2d_backward.default"), _nll_loss_backward),
}


def _count(emitter: Emitter, labels: Value, ignored: int, weight: Value | None, type_: TensorType) -> Value:
    """How many labels are not ignored, or the sum of their classes' weights: a number of type `type_`."""
    indices = from_mlir(labels.type)
    flags = replace(indices, dtype=torch.bool)
    if weight is None:
        valid = emitter.op("aten.ne.Scalar", labels, ignored, type=flags)
        return emitter.op("aten.sum.default", valid, type=type_, dtype=type_.dtype)
    is_ignored = emitter.op("aten.eq.Scalar", labels, ignored, type=flags)
    classes = emitter.op("aten.masked_fill.Scalar", labels, is_ignored, 0, type=indices)
    weights = replace(indices, dtype=from_mlir(weight.type).dtype)
    label_weights = emitter.op("aten.index.Tensor", weight, [classes], type=weights)
    counted_weights = emitter.op("aten.masked_fill.Scalar", label_weights, is_ignored, 0.0, type=weights)
    return emitter.op("aten.sum.default", counted_weights, type=type_)
