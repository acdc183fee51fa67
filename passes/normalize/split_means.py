"""Write a mean as a sum divided by a count, so that ranks that share its elements add up partial sums.

Before                                      After (n elements in the dims of the mean)
  %1 = aten.mean %0 {dim = [0]}               %s = aten.sum %0 {dim = [0]}
                                              %1 = aten.div.Scalar %s, n

Where counts differ, the ranks' own means of a sharded dim do not add up to its mean; their sums do, and to divide by
the global count is linear. Means of 16-bit floats are summed in float32, as torch does inside.

Needs: level `aten`, idioms raised (their patterns hold means).   Keeps: values (the same division that torch makes).
Cost: one operation more per mean; the sums of ranks instead of a gathered operand.
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
    """Replace one mean; one of no elements, which is not a number, is left."""
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
