"""Rewrite a mean to a sum divided by a count, so that ranks can hold partial sums.

Before                                      After (n elements in the dims of the mean)
  %1 = aten.mean %0 {dim = [0]}               %s = aten.sum %0 {dim = [0]}
                                              %1 = aten.div.Scalar %s, n

The mean over a sharded dim is not the mean of local means if chunks differ in size; the sum is the sum of local sums,
and the division by the global count is linear. Means of 16-bit floats are summed in float32, as torch does inside.

Needs: level `aten`, idioms raised (their patterns hold means).   Keeps: values (the same division that torch makes).
Cost: one operation more per mean; partial sums instead of a gathered operand.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch

from ...ir.bindings import Value
from ...ir.module import Level, Module
from ...ir.types import TensorType, from_mlir
from ..base import Pass, Report
from ..rewriting import Applied, Declined, Outcome, Site, rewrite

_SUMS = {"aten.mean.default": "aten.sum.default", "aten.mean.dim": "aten.sum.dim_IntList"}


@dataclass(frozen=True)
class SplitMeans(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "split-means"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})

    def run(self, module: Module) -> Report:
        return rewrite(module, self.name, dict.fromkeys(_SUMS, _split))


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
    if exact == site.type.dtype:
        return mean
    return site.emitter.op("aten._to_copy.default", mean, type=site.type, dtype=site.type.dtype)
