"""Look-ups by an index for each row, on rows whose dims are apart, for `keep-dims-apart`; and scores at labels.

Before (N rows, V classes)                              After
  %1 = aten.arange N                                      %3 = aten.unsqueeze %y, 1
  %2 = aten.index %scores, [%1, %y] : (N)                 %4 = aten.gather %scores, 1, %3
                                                          %2 = aten.squeeze %4, 1

`scores[arange(N), y]` reads one score of each row. As an index it may be cut nowhere, because the first index could
name any row; as a gather, rows and classes may be. Its backward, `index_put` that accumulates, becomes a `scatter_add`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ...ir.bindings import Value
from ...ir.operations import Call
from ...ir.types import TensorType, from_mlir
from ..rewriting import Applied, Emitter, Outcome, Site, producer
from .merged_rows import Dims, apart, first_merged, merged, replace_taken_apart, reshaped, type_apart

_APPLIED = Applied("row by row with its rows' dims apart")
_PICKED = Applied("an index of each row written as a gather or scatter_add")
_VIEWS = ("aten.reshape.default", "aten.unsqueeze.default", "aten.view.default")


def look_up(site: Site) -> Outcome:
    """embedding, and index by one tensor: a row of the table for each index, the indices' dims apart."""
    table, indices, *rest = site.call.args
    if isinstance(indices, list | tuple):
        given = [index for index in indices if index is not None]
        if len(given) > 1:
            return _picked(site, table, indices)
        index = indices[0]
    else:
        index = indices
    rows = None if index is None or len(from_mlir(index.type).shape) != 1 else merged(index)
    if rows is None:
        return None
    taken: Any = apart(site.emitter, index, rows.dims)
    taken = [taken, *indices[1:]] if isinstance(indices, list | tuple) else taken
    found = site.emitter.op(site.call.name, table, taken, *rest, type=type_apart(site.type, rows.dims))
    replace_taken_apart(site.op.results[0], found)
    site.replace(reshaped(site.emitter, found, site.type.shape))
    return _APPLIED


def look_up_backward(site: Site) -> Outcome:
    """embedding_dense_backward: gradients of rows, summed by their index."""
    grad, index, *rest = site.call.args
    rows = first_merged((index, grad)) if len(from_mlir(index.type).shape) == 1 else None
    if rows is None:
        return None
    parts = [apart(site.emitter, value, rows.dims) for value in (grad, index)]
    site.replace(site.emitter.op(site.call.name, *parts, *rest, type=site.type))
    return Applied("sum over rows with their dims apart")


def _picked(site: Site, scores: Value, indices: Sequence[Value | None]) -> Outcome:
    """An index of one class for each row: a gather."""
    labels = _labels_of_rows(from_mlir(scores.type).shape, indices)
    if labels is None:
        return None
    scores, labels, merged_dims = _apart_rows(site.emitter, scores, labels)
    picked = _at_labels(site.emitter, "aten.gather.default", scores, labels, site.type)
    if merged_dims:
        replace_taken_apart(site.op.results[0], picked)
    site.replace(reshaped(site.emitter, picked, site.type.shape))
    return _PICKED


def put(site: Site) -> Outcome:
    """index_put with accumulation of a number at one class for each row: a scatter_add."""
    base, indices, values, *rest = site.call.args
    labels = _labels_of_rows(from_mlir(base.type).shape, indices) if rest and rest[0] else None
    if labels is None or from_mlir(values.type).shape != from_mlir(labels.type).shape:
        return None
    emitter, type_ = site.emitter, site.type
    base, labels, dims = _apart_rows(emitter, base, labels)
    values = apart(emitter, values, dims) if dims else values
    added = _at_labels(emitter, "aten.scatter_add.default", base, labels, from_mlir(base.type), values)
    if dims:
        replace_taken_apart(site.op.results[0], added)
    site.replace(reshaped(emitter, added, type_.shape))
    return _PICKED


def _apart_rows(emitter: Emitter, scores: Value, labels: Value) -> tuple[Value, Value, Dims]:
    """Scores and labels with their rows' dims apart, and these dims, where one of them has merged rows."""
    rows = first_merged((scores, labels)) if len(from_mlir(labels.type).shape) == 1 else None
    if rows is None:
        return scores, labels, ()
    return apart(emitter, scores, rows.dims), apart(emitter, labels, rows.dims), rows.dims


def _at_labels(emitter: Emitter, name: str, scores: Value, labels: Value, result: TensorType, *values: Value) -> Value:
    """A gather, or a scatter_add of values, along the last dim, with an index for each row."""
    scores_type, label_type = from_mlir(scores.type), from_mlir(labels.type)
    along = len(label_type.shape)
    columns = [_column(emitter, value) for value in (_counted_from_start(emitter, scores, labels), *values)]
    if name == "aten.scatter_add.default":
        return emitter.op(name, scores, along, *columns, type=scores_type)
    type_ = TensorType(result.dtype, (*label_type.shape, 1))
    picked = emitter.op(name, scores, along, *columns, type=type_)
    return emitter.op("aten.squeeze.dim", picked, along, type=replace(type_, shape=label_type.shape))


def _column(emitter: Emitter, value: Value) -> Value:
    type_ = from_mlir(value.type)
    shape = (*type_.shape, 1)
    return emitter.op("aten.unsqueeze.default", value, len(type_.shape), type=TensorType(type_.dtype, shape))


def _counted_from_start(emitter: Emitter, scores: Value, labels: Value) -> Value:
    """The labels, those counted from the end, which a gather refuses, counted from the start."""
    type_ = from_mlir(labels.type)
    plain = TensorType(type_.dtype, type_.shape)
    is_negative = emitter.op("aten.lt.Scalar", labels, 0, type=replace(plain, dtype=torch.bool))
    shifted = emitter.op("aten.add.Scalar", labels, from_mlir(scores.type).shape[-1], type=plain)
    return emitter.op("aten.where.self", is_negative, shifted, labels, type=plain)


def _labels_of_rows(scores: Dims, indices: Sequence[Value | None]) -> Value | None:
    """The last of the indices, where the others name all rows in order; None where they do not."""
    rows, labels = scores[:-1], indices[-1]
    if len(indices) != len(scores) or any(index is None for index in indices):
        return None
    if labels is None or from_mlir(labels.type).shape != rows or from_mlir(labels.type).dtype != torch.int64:
        return None
    named = [_counts(index, len(rows)) for index in indices[:-1] if index is not None]
    return labels if named == [(d, n) for d, n in enumerate(rows)] else None


def _counts(index: Value, rank: int) -> tuple[int, int] | None:
    """The dim, of `rank` that it broadcasts to, along which an index counts from 0, and to where; None for others."""
    shape = from_mlir(index.type).shape
    call = producer(index)
    while call is not None and call.name in _VIEWS:
        call = producer(call.args[0])
    counted = [d for d, extent in enumerate(shape) if extent != 1] or [len(shape) - 1]
    if call is None or len(counted) != 1 or not _is_range(call, shape[counted[0]]):
        return None
    return counted[0] + rank - len(shape), shape[counted[0]]


def _is_range(call: Call, extent: int) -> bool:
    """Whether a call makes the numbers from 0 to an extent, one by one."""
    match call.name, call.args:
        case "aten.arange.default", (end, *_):
            return bool(end == extent)
        case "aten.arange.start" | "aten.arange.start_step", (0, end, *step):
            return bool(end == extent and all(size in (None, 1) for size in step[:1]))
    return False
