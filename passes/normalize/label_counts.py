"""What a mean loss over labels divides by: how many of them count, or the sum of their classes' weights."""

from __future__ import annotations

from dataclasses import replace

import torch

from ...ir.bindings import Value
from ...ir.types import TensorType, from_mlir
from ..rewriting import Emitter


def count_of(emitter: Emitter, labels: Value, ignored: int, weight: Value | None, type_: TensorType) -> Value:
    """How many labels are not `ignored`, or the sum of their classes' weights: a number of type `type_`."""
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
