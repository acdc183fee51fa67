"""Rewrite a mean to a sum divided by a count, so that ranks can hold partial sums.

Before                                      After (n elements in the dims of the mean)
  %1 = aten.mean %0 {dim = [0]}               %s = aten.sum %0 {dim = [0]}
                                              %1 = aten.div.Scalar %s, n

The mean over a sharded dim is not the mean of local means if chunks differ in size; the sum is the sum of local sums,
and the division by the global count is linear. Means of 16-bit floats are summed in float32, as torch does inside.

An `nll_loss` that is a mean, and its backward, become a sum and a division too: by the number of labels that are not
ignored, or by the sum of their classes' weights. Both depend on the labels alone.

Needs: level `aten`, idioms raised (their patterns hold means).   Keeps: values (the same division that torch makes).
Cost: one operation more per mean; partial sums instead of a gathered operand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import torch

from ...ir.bindings import Value
from ...ir.module import Level, Module
from ...ir.operations import Call, build
from ...ir.types import TensorType, from_mlir, to_mlir
from ..base import Pass, Report
from ..rewriting import Applied, Declined, Outcome, Site, rewrite
from .idioms.cross_entropy import MEAN, NLL_LOSS, NLL_LOSS_BACKWARD, SUM
from .label_counts import count_of

_APPLIED_LOSS = Applied("mean of losses written as a sum and a division")
_SUMS = {"aten.mean.default": "aten.sum.default", "aten.mean.dim": "aten.sum.dim_IntList"}


@dataclass(frozen=True)
class SplitMeans(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "split-means"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})
    joins_layers: ClassVar[bool] = True

    def run(self, module: Module) -> Report:
        return rewrite(module, self.name, {**dict.fromkeys(_SUMS, _split), **_LOSSES})


def _split(site: Site) -> Outcome:
    """Replace one mean; a mean of no elements, which is NaN, is left."""
    elements = prod(from_mlir(site.call.args[0].type).shape) // max(1, prod(site.type.shape))
    if elements == 0:
        return Declined("mean left: it has no elements")
    site.replace(_mean(site, elements))
    return Applied("mean written as a sum and a division")


def _mean(site: Site, elements: int) -> Value:
    exact = torch.promote_types(site.type.dtype, torch.float32)
    summed = TensorType(exact, site.type.shape)
    kwargs = {"dtype": exact} if exact != from_mlir(site.call.args[0].type).dtype else {}
    total = site.emitter.op(_SUMS[site.call.name], *site.call.args, type=summed, **kwargs)
    mean = site.emitter.op("aten.div.Scalar", total, elements, type=summed)
    return _cast(site, mean, site.type.dtype)


def _cast(site: Site, value: Value, dtype: torch.dtype) -> Value:
    type_ = from_mlir(value.type)
    if type_.dtype == dtype:
        return value
    return site.emitter.op("aten._to_copy.default", value, type=replace(type_, dtype=dtype), dtype=dtype)


def _nll_loss(site: Site) -> Outcome:
    """self, target, weight?, reduction, ignore_index -> (loss, count): a mean becomes a sum and a division."""
    scores, labels, weight, reduction, ignored = site.call.args
    types = [from_mlir(result.type) for result in site.op.results]
    if reduction not in (MEAN, SUM):  # no user needs the count then, but the backward takes it as an operand
        site.op.results[1].replace_all_uses_with(count_of(site.emitter, labels, ignored, weight, types[1]))
        return _APPLIED_LOSS
    exact = torch.promote_types(site.type.dtype, torch.float32)
    scores, weight = (None if each is None else _cast(site, each, exact) for each in (scores, weight))
    wide = [replace(type_, dtype=exact) for type_ in types]
    count = count_of(site.emitter, labels, ignored, weight, wide[1])
    call = Call(site.call.name, (scores, labels, weight, SUM, ignored))
    loss, _ = build(call, [to_mlir(type_) for type_ in wide], site.op.location)
    if reduction == MEAN:
        loss = site.emitter.op("aten.div.Tensor", loss, count, type=wide[0])
    site.replace(_cast(site, loss, types[0].dtype), _cast(site, count, types[1].dtype))
    return _APPLIED_LOSS


def _nll_loss_backward(site: Site) -> Outcome:
    """grad, self, target, weight?, reduction, ignore_index, count -> the gradient: of a mean, by that of a sum."""
    grad, scores, labels, weight, reduction, ignored, count = site.call.args
    if reduction != MEAN:
        return None
    scaled = site.emitter.like("aten.div.Tensor", grad, count)
    args = (scaled, scores, labels, weight, SUM, ignored, count)
    site.replace(site.emitter.op(site.call.name, *args, type=site.type))
    return _APPLIED_LOSS


_LOSSES = {
    **dict.fromkeys((NLL_LOSS, "aten.nll_loss2d_forward.default"), _nll_loss),
    **dict.fromkeys((NLL_LOSS_BACKWARD, "aten.nll_loss2d_backward.default"), _nll_loss_backward),
}
