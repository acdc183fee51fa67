"""Compute linear layers and losses without flattening leading dims, so that any of them may be sharded.

Before (B examples, S tokens, K and N features)           After
  %1 = aten.reshape %x to (B*S, K)                          %y = nn.linear %x, %w : (B, S, K) -> (B, S, N)
  %2 = aten.mm %1, %w                                       (%3 is %y)
  %3 = aten.reshape %2 to (B, S, N)
  %4 = aten.t %g                      (B*S, N)              %5 = nn.sum_of_outer_products %g, %x
  %5 = aten.mm %4, %1                 gradient of %w

A linear layer, its gradients and a loss treat rows alike or sum over them in any order. Torch flattens the leading dims
to one dim of rows, of which only the first can be sharded. The pass follows this dim to where it is split or summed:
through matrix products, sums over rows and cross-entropy.

Needs: level `aten`, idioms raised.   Keeps: values.   Cost: none; `lower-idioms` flattens the rows that a rank has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from ...ir.bindings import Operation, Value
from ...ir.dim_groups import dim_groups
from ...ir.module import Level, Module, operations
from ...ir.operations import Call, build, read
from ...ir.types import TensorType, from_mlir, to_mlir
from ..base import Pass, Report
from ..rewriting import Applied, Emitter, Outcome, Site, producer, rewrite, users

_MM, _ADDMM, _SUM = "aten.mm.default", "aten.addmm.default", "aten.sum.dim_IntList"
_RESHAPE, _T = "aten.reshape.default", "aten.t.default"
_LINEAR, _OUTER = "nn.linear", "nn.sum_of_outer_products"
_LOSS, _LOSS_BACKWARD = "nn.cross_entropy", "nn.cross_entropy_backward"


@dataclass(frozen=True)
class KeepDimsApart(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "keep-dims-apart"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})
    joins_layers: ClassVar[bool] = True

    def run(self, module: Module) -> Report:
        report = rewrite(module, self.name, _PATTERNS)
        for function in module.functions().values():
            _input_gradients_first(function)
        return report


def _input_gradients_first(function: Operation) -> None:
    """Move each gradient of a weight behind the gradient of its layer's input: both read the incoming gradient.

    Placements are chosen op by op, in order. Where the weight is sharded, the input's gradient gathers the incoming
    gradient. The weight's gradient then uses that copy, and moves nothing of its own.
    """
    ops = list(operations(function))
    order = {op: index for index, op in enumerate(ops)}
    for op in ops:
        if op.operation.name != _OUTER:
            continue
        readers = [user for value in op.operands for user in users(value) if _reads(user, value)]
        later = [reader for reader in readers if order[reader] > order[op]]
        if later:
            last = min(later, key=order.__getitem__)
            _move_behind(op, last, ops[order[op] + 1 : order[last] + 1])


def _move_behind(op: Operation, last: Operation, between: Sequence[Operation]) -> None:
    """Move an operation and its dependents among `between` behind `last`, unless `last` is a dependent."""
    moved, made = [op], set(op.results)
    for other in between:
        if any(operand in made for operand in other.operands):
            moved.append(other)
            made.update(other.results)
    if last in moved:
        return
    for other in moved:
        other.operation.move_after(last.operation)
        last = other


def _reads(user: Operation, value: Value) -> bool:
    """Whether an operation is a linear layer of a value."""
    return bool(user.operation.name == _LINEAR and user.operands[0] == value)


@dataclass(frozen=True)
class _Merged:
    """A matrix whose rows merge `dims`, and the value that it was reshaped from."""

    source: Value
    dims: tuple[int, ...]

    def apart(self, emitter: Emitter) -> Value:
        """The matrix with these dims in place of its rows."""
        type_ = from_mlir(self.source.type)
        rest = prod(type_.shape[len(self.dims) :])
        return _reshaped(emitter, self.source, (*self.dims, rest))


def _merged(value: Value) -> _Merged | None:
    """How a matrix was reshaped, if its rows merge two or more dims; None for others."""
    call = producer(value)
    if call is None or call.name != _RESHAPE:
        return None
    before, after = from_mlir(call.args[0].type).shape, from_mlir(value.type).shape
    if len(after) != 2 or 0 in before:
        return None
    for merged, into in dim_groups(before, after):
        if into == (0,) and len(merged) > 1:
            return _Merged(call.args[0], before[: merged[-1] + 1])
    return None


def _product(site: Site) -> Outcome:
    """mm: a linear layer, where its rows are merged; the gradient of a weight, where it sums over merged rows."""
    left, right = site.call.args
    transposed = producer(left)
    if transposed is not None and transposed.name == _T:
        [operand] = transposed.args
        merged = _merged(operand) or _merged(right)
        if merged is None:
            return None
        pair = [_apart(site.emitter, value, merged.dims) for value in (operand, right)]
        site.replace(site.emitter.op(_OUTER, *pair, type=site.type))
        return Applied("sum over rows with their dims apart")
    return _linear(site, left, right, None)


def _product_with_bias(site: Site) -> Outcome:
    """addmm of a bias: a linear layer."""
    bias, left, right = site.call.args
    is_plain = all(value == 1 for value in site.call.kwargs.values()) and len(from_mlir(bias.type).shape) == 1
    return _linear(site, left, right, bias) if is_plain else None


def _linear(site: Site, rows: Value, weight: Value, bias: Value | None) -> Outcome:
    merged = _merged(rows)
    if merged is None:
        return None
    x, features = merged.apart(site.emitter), site.type.shape[1]
    type_ = TensorType(site.type.dtype, (*merged.dims, features))
    operands = (x, weight) if bias is None else (x, weight, bias)
    product = site.emitter.op(_LINEAR, *operands, type=type_)
    _replace_taken_apart(site.op.results[0], product)
    site.replace(_reshaped(site.emitter, product, site.type.shape))
    return Applied("linear layer with its rows' dims apart")


def _sum(site: Site) -> Outcome:
    """A sum over merged rows."""
    rows, dims, *rest = site.call.args
    merged = _merged(rows)
    if merged is None or [d % 2 for d in dims or ()] != [0]:
        return None
    keeps_dim = bool(rest and rest[0])
    type_ = TensorType(site.type.dtype, site.type.shape[-1:])
    every = list(range(len(merged.dims)))
    total = site.emitter.op(_SUM, merged.apart(site.emitter), every, False, type=type_, **site.call.kwargs)
    if keeps_dim:
        _replace_taken_apart(site.op.results[0], total)
    site.replace(_reshaped(site.emitter, total, site.type.shape) if keeps_dim else total)
    return Applied("sum over rows with their dims apart")


def _loss(site: Site) -> Outcome:
    """nn.cross_entropy: logits and labels with their dims apart."""
    logits, labels, ignored = site.call.args
    merged = _merged(logits)
    if merged is None:
        return None
    emitter = site.emitter
    types = [from_mlir(result.type) for result in site.op.results]
    apart = TensorType(types[2].dtype, merged.dims)
    call = Call(_LOSS, (merged.apart(emitter), _reshaped(emitter, labels, merged.dims), ignored))
    total, count, rows = build(call, [to_mlir(t) for t in (*types[:2], apart)], site.op.location)
    _replace_taken_apart(site.op.results[2], rows)
    site.replace(total, count, _reshaped(emitter, rows, types[2].shape))
    return Applied("loss with its rows' dims apart")


def _loss_backward(site: Site) -> Outcome:
    """nn.cross_entropy_backward: logits, labels and the gradient with their dims apart."""
    scale, logits, labels, rows, ignored = site.call.args
    merged = _merged(logits)
    if merged is None:
        return None
    emitter, dims = site.emitter, merged.dims
    type_ = TensorType(site.type.dtype, (*dims, site.type.shape[1]))
    operands = (merged.apart(emitter), _reshaped(emitter, labels, dims), _reshaped(emitter, rows, dims))
    gradient = emitter.op(_LOSS_BACKWARD, scale, *operands, ignored, type=type_)
    _replace_taken_apart(site.op.results[0], gradient)
    site.replace(_reshaped(emitter, gradient, site.type.shape))
    return Applied("loss with its rows' dims apart")


def _replace_taken_apart(merged: Value, apart: Value) -> None:
    """Replace the reshapes of a merged result that split its rows again by the value with its dims apart."""
    for user in users(merged):
        call = read(user)
        if call is not None and call.name == _RESHAPE and user.results[0].type == apart.type:
            user.results[0].replace_all_uses_with(apart)


def _apart(emitter: Emitter, matrix: Value, dims: tuple[int, ...]) -> Value:
    """A matrix with `dims` in place of its rows."""
    merged = _merged(matrix)
    if merged is not None and merged.dims == dims:
        return merged.apart(emitter)
    return _reshaped(emitter, matrix, (*dims, from_mlir(matrix.type).shape[1]))


def _reshaped(emitter: Emitter, value: Value, shape: Sequence[int]) -> Value:
    type_ = from_mlir(value.type)
    if type_.shape == tuple(shape):
        return value
    source = producer(value)
    if source is not None and source.name == _RESHAPE and from_mlir(source.args[0].type).shape == tuple(shape):
        return source.args[0]
    return emitter.op(_RESHAPE, value, list(shape), type=TensorType(type_.dtype, tuple(shape)))


_PATTERNS = {
    _MM: _product,
    _ADDMM: _product_with_bias,
    _SUM: _sum,
    _LOSS: _loss,
    _LOSS_BACKWARD: _loss_backward,
}
