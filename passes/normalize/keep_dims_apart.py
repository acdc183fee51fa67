"""Compute linear layers and losses without flattening leading dims, so that any of them may be sharded.

Before (B examples, S tokens, K and N features)           After
  %1 = aten.reshape %x to (B*S, K)                          %y = nn.linear %x, %w : (B, S, K) -> (B, S, N)
  %2 = aten.mm %1, %w                                       (%3 is %y)
  %3 = aten.reshape %2 to (B, S, N)
  %4 = aten.t %g                      (B*S, N)              %5 = nn.sum_of_outer_products %g, %x
  %5 = aten.mm %4, %1                 gradient of %w

A linear layer, its gradients and a loss treat rows alike or sum over them in any order. Torch flattens the leading dims
to one dim of rows, of which only the first can be sharded. The pass follows this dim to where it is split or summed:
through matrix products, losses, and whatever else takes each row alone, such as pointwise operations, softmax, gather,
embedding, norms. An `nll_loss` becomes `nn.nll_loss`, which has a loss for each row.

Needs: level `aten`, idioms raised.   Keeps: values.   Cost: none; `lower-idioms` flattens the rows that a rank has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ...ir.bindings import Operation, Value
from ...ir.locations import from_location
from ...ir.module import Level, Module, operations
from ...ir.operations import read
from ...ir.types import TensorType, from_mlir, is_tensor
from ..base import Pass, Remark, Report
from ..counted_remarks import CountedRemarks
from ..graph import Graph
from ..rewriting import Applied, Outcome, Pattern, Site, is_used, producer, rewrite, site_weights, users
from .merged_rows import FILLED_LIKE, apart, first_merged, merged, replace_taken_apart, reshaped
from .row_losses import PATTERNS as LOSSES
from .row_wise import patterns

_MM, _ADDMM, _T = "aten.mm.default", "aten.addmm.default", "aten.t.default"
_VIEWS = ("aten.reshape.default", "aten.view.default", "aten._unsafe_view.default", _T)
_LINEAR, _OUTER = "nn.linear", "nn.sum_of_outer_products"


@dataclass(frozen=True)
class KeepDimsApart(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "keep-dims-apart"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})
    joins_layers: ClassVar[bool] = True

    def run(self, module: Module) -> Report:
        report = rewrite(module, self.name, {**patterns(), **_PATTERNS})
        for function in module.functions().values():
            _input_gradients_first(function)
        return replace(report, remarks=(*report.remarks, *_left_merged(module)))


def _left_merged(module: Module) -> tuple[Remark, ...]:
    """A remark for each operation that takes merged rows as one dim, where inputs are sharded along another dim."""
    remarks, weights = CountedRemarks(KeepDimsApart.name), site_weights(module)
    if not _shards_inner_dims(module):
        return ()
    for name, function in module.functions().items():
        for op in operations(function):
            call = read(op)
            if call is None or call.name in (*_VIEWS, *FILLED_LIKE) or not is_used(op):
                continue
            rows = first_merged(call.values())
            if rows is not None:
                dims = " x ".join(map(str, rows.dims))
                message = f"{call.name} takes {dims} rows as one dim: of these, ranks may shard the first dim alone"
                remarks.missed(message, from_location(op.location), weights[name])
    return remarks.remarks()


def _shards_inner_dims(module: Module) -> bool:
    """Whether an input is sharded along another dim than its first."""
    main = module.functions().get("main")
    if main is None:
        return False
    inputs = [v for v, record in Graph.of(main).arguments if record.get("kind") == "input" and is_tensor(v.type)]
    return any(any(from_mlir(value.type).placement_on(module.mesh).dims[1:]) for value in inputs)


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


def _product(site: Site) -> Outcome:
    """mm: a linear layer, where its rows are merged; the gradient of a weight, where it sums over merged rows."""
    left, right = site.call.args
    transposed = producer(left)
    if transposed is not None and transposed.name == _T:
        [operand] = transposed.args
        rows = first_merged((operand, right))
        if rows is None:
            return None
        pair = [apart(site.emitter, value, rows.dims) for value in (operand, right)]
        site.replace(site.emitter.op(_OUTER, *pair, type=site.type))
        return Applied("sum over rows with their dims apart")
    return _linear(site, left, right, None)


def _product_with_bias(site: Site) -> Outcome:
    """addmm of a bias: a linear layer."""
    bias, left, right = site.call.args
    is_plain = all(value == 1 for value in site.call.kwargs.values()) and len(from_mlir(bias.type).shape) == 1
    return _linear(site, left, right, bias) if is_plain else None


def _linear(site: Site, rows: Value, weight: Value, bias: Value | None) -> Outcome:
    found = merged(rows)
    if found is None:
        return None
    x, features = found.matrix(site.emitter), site.type.shape[1]
    type_ = TensorType(site.type.dtype, (*found.dims, features))
    operands = (x, weight) if bias is None else (x, weight, bias)
    product = site.emitter.op(_LINEAR, *operands, type=type_)
    replace_taken_apart(site.op.results[0], product)
    site.replace(reshaped(site.emitter, product, site.type.shape))
    return Applied("linear layer with its rows' dims apart")


_PATTERNS: Mapping[str, Pattern] = {
    _MM: _product,
    _ADDMM: _product_with_bias,
    **LOSSES,
}
