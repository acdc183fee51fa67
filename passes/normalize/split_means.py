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

from ...ir.bindings import Operation, Value, mlir
from ...ir.dialects.context import context
from ...ir.locations import from_location
from ...ir.module import Level, Module, operations
from ...ir.operations import Call, build, read
from ...ir.types import TensorType, from_mlir, to_mlir
from ..base import Pass, Report
from ..counted_remarks import Tally

_SUMS = {"aten.mean.default": "aten.sum.default", "aten.mean.dim": "aten.sum.dim_IntList"}


@dataclass(frozen=True)
class SplitMeans(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "split-means"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})

    def run(self, module: Module) -> Report:
        count, tally = 0, Tally(self.name)
        for function in module.functions().values():
            for op in operations(function):
                call = read(op)
                if call is None or call.name not in _SUMS:
                    continue
                origin = from_location(op.location)
                if _split(op, call):
                    count += 1
                    tally.applied("mean written as a sum and a division", origin)
                else:
                    tally.missed("mean left: it has no elements", origin)
        return Report(count, tally.remarks())


def _split(op: Operation, call: Call) -> bool:
    """Replace one mean; one of no elements, which is not a number, is left."""
    made = from_mlir(op.results[0].type)
    elements = prod(from_mlir(call.args[0].type).shape) // max(1, prod(made.shape))
    if elements == 0:
        return False
    with context(), mlir.InsertionPoint(op):
        mean = _mean(op, call, made, elements)
    op.results[0].replace_all_uses_with(mean)
    op.operation.erase()
    return True


def _mean(op: Operation, call: Call, made: TensorType, elements: int) -> Value:
    exact = torch.promote_types(made.dtype, torch.float32)
    summed = to_mlir(TensorType(exact, made.shape))
    kwargs = {"dtype": exact} if exact != from_mlir(call.args[0].type).dtype else {}
    [total] = build(Call(_SUMS[call.name], call.args, kwargs), [summed], op.location)
    [mean] = build(Call("aten.div.Scalar", (total, elements)), [summed], op.location)
    if exact != made.dtype:
        cast = Call("aten._to_copy.default", (mean,), {"dtype": made.dtype})
        [mean] = build(cast, [op.results[0].type], op.location)
    return mean
