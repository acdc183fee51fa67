"""Losses on rows whose dims are apart, for `keep-dims-apart`: cross-entropy, and nll_loss of what it does not cover.

Before (B examples, S tokens, V classes)              After
  %1 = aten.reshape %p to (B*S, V)                      %l = nn.nll_loss %p, %y : (B, S, V), (B, S) -> (B, S)
  %2 = aten.reshape %y to (B*S)                         %3 = aten.sum %l
  %3, %n = aten.nll_loss_forward %1, %2, sum

torch's nll_loss has one dim of rows. `nn.nll_loss` has any number, and a loss for each; a sum is an operation of its
own. A mean is left: `split-means` makes it a sum first.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...ir.bindings import Value
from ...ir.operations import Call, build
from ...ir.types import TensorType, from_mlir, to_mlir
from ..rewriting import Applied, Emitter, Outcome, Pattern, Site
from .idioms.cross_entropy import MEAN, NLL_LOSS, NLL_LOSS_BACKWARD, SUM
from .label_counts import count_of
from .merged_rows import Dims, apart, first_merged, replace_taken_apart, reshaped, type_apart

CROSS_ENTROPY, CROSS_ENTROPY_BACKWARD = "nn.cross_entropy", "nn.cross_entropy_backward"
ROW_LOSS, ROW_LOSS_BACKWARD = "nn.nll_loss", "nn.nll_loss_backward"
_APPLIED = Applied("loss with its rows' dims apart")


def _cross_entropy(site: Site) -> Outcome:
    """nn.cross_entropy: logits and labels with their dims apart."""
    logits, labels, ignored = site.call.args
    rows = first_merged((logits, labels)) if _is_matrix(logits) else None
    if rows is None:
        return None
    emitter = site.emitter
    types = [from_mlir(result.type) for result in site.op.results]
    each = TensorType(types[2].dtype, rows.dims)
    call = Call(CROSS_ENTROPY, (apart(emitter, logits, rows.dims), apart(emitter, labels, rows.dims), ignored))
    total, count, logsumexp = build(call, [to_mlir(t) for t in (*types[:2], each)], site.op.location)
    replace_taken_apart(site.op.results[2], logsumexp)
    site.replace(total, count, reshaped(emitter, logsumexp, types[2].shape))
    return _APPLIED


def _cross_entropy_backward(site: Site) -> Outcome:
    """nn.cross_entropy_backward: logits, labels and the gradient with their dims apart."""
    scale, logits, labels, logsumexp, ignored = site.call.args
    rows = first_merged((logits, labels)) if _is_matrix(logits) else None
    if rows is None:
        return None
    operands = [apart(site.emitter, value, rows.dims) for value in (logits, labels, logsumexp)]
    return _merged_gradient(site, Call(CROSS_ENTROPY_BACKWARD, (scale, *operands, ignored)), rows.dims)


def _nll_loss(site: Site) -> Outcome:
    """A sum, or the losses of the rows."""
    scores, labels, weight, reduction, ignored = site.call.args
    rows = first_merged((scores, labels)) if _is_matrix(scores) and reduction != MEAN else None
    if rows is None:
        return None
    emitter, (loss, count) = site.emitter, site.op.results
    operands = [apart(emitter, value, rows.dims) for value in (scores, labels)]
    type_ = TensorType(site.type.dtype, rows.dims)
    losses = emitter.op(ROW_LOSS, *operands, weight, ignored, type=type_)
    counted = count_of(emitter, operands[1], ignored, weight, from_mlir(count.type)) if _is_used(count) else None
    if reduction == SUM:
        site.replace(emitter.op("aten.sum.default", losses, type=site.type), counted)
        return _APPLIED
    replace_taken_apart(loss, losses)
    site.replace(reshaped(emitter, losses, site.type.shape), counted)
    return _APPLIED


def _nll_loss_backward(site: Site) -> Outcome:
    """The gradient of a sum goes to each of its rows."""
    grad, scores, labels, weight, reduction, ignored, _ = site.call.args
    rows = first_merged((scores, labels)) if _is_matrix(scores) and reduction != MEAN else None
    if rows is None:
        return None
    emitter = site.emitter
    operands = [apart(emitter, value, rows.dims) for value in (scores, labels)]
    each = _repeated(emitter, grad, rows.dims) if reduction == SUM else apart(emitter, grad, rows.dims)
    return _merged_gradient(site, Call(ROW_LOSS_BACKWARD, (each, *operands, weight, ignored)), rows.dims)


def _repeated(emitter: Emitter, number: Value, dims: Dims) -> Value:
    return emitter.op("aten.expand.default", number, list(dims), type=TensorType(from_mlir(number.type).dtype, dims))


def _merged_gradient(site: Site, call: Call, dims: Dims) -> Outcome:
    """The gradient of the scores with their rows' dims apart, merged behind."""
    gradient = site.emitter.op(call.name, *call.args, type=type_apart(site.type, dims))
    replace_taken_apart(site.op.results[0], gradient)
    site.replace(reshaped(site.emitter, gradient, site.type.shape))
    return _APPLIED


def _is_matrix(scores: Value) -> bool:
    return len(from_mlir(scores.type).shape) == 2


def _is_used(value: Value) -> bool:
    return next(iter(value.uses), None) is not None


PATTERNS: Mapping[str, Pattern] = {
    CROSS_ENTROPY: _cross_entropy,
    CROSS_ENTROPY_BACKWARD: _cross_entropy_backward,
    NLL_LOSS: _nll_loss,
    NLL_LOSS_BACKWARD: _nll_loss_backward,
}
"""The pattern of each loss."""
