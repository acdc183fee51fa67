"""Compute the local softmax before all-reducing its statistics: exponentials use the rank's own maximum, then rescale.

Before                                              After
  %m = aten.amax %y, [1]                              %m = aten.amax %y, [1]
  %a = comm.all_reduce %m over ["pp"] max             %c = aten.clamp_min %m
  %e = aten.exp (%y - %a)                             %e = aten.exp (%y - %c)
  %s = comm.all_reduce (sum %e) over ["pp"] sum       %s0 = aten.sum %e
                                                      %a = comm.all_reduce %m over ["pp"] max
                                                      %s = comm.all_reduce (%s0 * exp(%c - %a)) over ["pp"] sum
  %p = aten.exp (%y - %l)                             %p = %e * exp(%c - %l)
  %d = aten.mm (%p * %r), %w                          %d = (aten.mm %e, %w) * exp(%c - %l) * %r

With a vocabulary over the pipeline axis, each rank has some columns of %y, and the maximum and sum over all columns
need an all-reduce. After this pass only per-row operations wait for it; exponentials and products of matrices do not:
exp(y - l) = exp(y - c) exp(c - l) for any column vector c, and a factor per row commutes with a sum over columns and
with a matrix product. With two `barriers` the product stays behind the first of them.

Needs: level `comm`, lowered idioms.   Keeps: values, up to rounding.   Cost: one more product with rows of %w.
Source: Balancing Pipeline Parallelism with Vocabulary Parallelism (arXiv 2411.05288), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import ClassVar

import torch

from ...dsl.plan import Plan
from ...ir.bindings import Operation, Value, mlir
from ...ir.collectives import ALL_REDUCE
from ...ir.dialects.context import context
from ...ir.locations import from_location
from ...ir.module import Level, Module, operations
from ...ir.operations import Call, read
from ...ir.types import TensorType, from_mlir
from ..base import Pass, Report
from ..counted_remarks import CountedRemarks
from ..rewriting import Emitter, erase_unused, producer, users

_COPY = "aten._to_copy.default"
_ELEMENTWISE_COPIES = ("aten.reshape.default", "aten.view.default", _COPY, "comm.mask")
"""Operations that keep all elements if they keep the rows, up to rounding and padding."""


@dataclass(frozen=True)
class UseLocalStatistics(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "use-local-statistics"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    plan: Plan
    """The plan; its statement about the pipeline is used."""

    def run(self, module: Module) -> Report:
        pipeline = self.plan.pipeline
        if pipeline is None:
            return Report()
        remarks, count = CountedRemarks(self.name), 0
        main = module.functions()["main"]
        for op in operations(main):
            call = producer(op.results[0]) if op.results else None
            if call is not None and call.name == ALL_REDUCE and pipeline.axis in call.args[1]:
                rewritten = _Statistics(op, call, pipeline.barriers == 1).rewrite()
                count += rewritten
                if rewritten:
                    remarks.applied(
                        "exponentials are taken relative to a rank's own maximum", from_location(op.location)
                    )
        if count:
            erase_unused(main)
        return Report(count, remarks.remarks())


@dataclass(frozen=True)
class _Term:
    """A term of a matrix: the exponentials, or a 1 in each row at `index`; times `factors`, one number per row each."""

    factors: tuple[Value, ...]
    index: Value | None = None


@dataclass
class _Statistics:
    """The rewrite of one softmax: the maximum of its logits over ranks, and the exponentials that use it."""

    op: Operation
    call: Call
    moves_products: bool
    factors: dict[Value, Value] = field(default_factory=dict)
    """For each rewritten exponential, its factor per row."""
    rank_maximum: Value | None = None
    """The rank's own maximum, finite even if the rank has no column."""
    exponentials: Value | None = None
    """The exponentials of the logits relative to the rank's own maximum."""

    def rewrite(self) -> int:
        """Rewrite; returns the number of exponentials that now use the rank's own maximum."""
        maximum = producer(self.call.args[0])
        if (
            self.call.args[2] != "max"
            or maximum is None
            or maximum.name != "aten.amax.default"
            or maximum.args[1:] != ([1], True)
        ):
            return 0
        logits = maximum.args[0]
        exponentials = [op for op in operations(self.op.parent.opview) if self._is_exponential(op, logits)]
        with context():
            for op in exponentials:
                self._make_relative(op, logits)
            for value in list(self.factors):
                for use in users(value):
                    self._sum(use, value)
            for op in operations(self.op.parent.opview) if self.moves_products else ():
                self._product(op)
        return len(exponentials)

    def _is_exponential(self, op: Operation, logits: Value) -> bool:
        """Whether an operation is exp(y - c) of the logits y, masked or not, and a column c."""
        call = read(op)
        inner = producer(call.args[0]) if call is not None and call.name == "aten.exp.default" else None
        if inner is None or inner.name != "aten.sub.Tensor" or inner.kwargs.get("alpha", 1) != 1:
            return False
        value, column = inner.args
        return _unmasked(value) == _unmasked(logits) and _is_column(column, value)

    def _make_relative(self, op: Operation, logits: Value) -> None:
        """exp(y - c) becomes exp(y - own maximum) times a factor for each row."""
        emitter = Emitter(op.location)
        inner = producer(op.operands[0])
        assert inner is not None
        column = inner.args[1]
        bare = _bare(from_mlir(column.type))
        with mlir.InsertionPoint(op):
            maximum = self._rank_maximum(logits)
            factor = emitter.op(
                "aten.exp.default", emitter.op("aten.sub.Tensor", maximum, column, type=bare), type=bare
            )
            type_ = from_mlir(op.results[0].type)
            product = emitter.op("aten.mul.Tensor", self.exponentials, factor, type=type_)
        op.results[0].replace_all_uses_with(product)
        self.factors[product] = factor

    def _rank_maximum(self, logits: Value) -> Value:
        """The rank's own maximum; builds it and the exponentials relative to it at the first use."""
        maximum = self.call.args[0]
        if self.rank_maximum is None:
            emitter = Emitter(self.op.location)
            with mlir.InsertionPoint(self.op):
                type_ = _bare(from_mlir(maximum.type))
                lowest = torch.finfo(type_.dtype).min
                self.rank_maximum = emitter.op("aten.clamp_min.default", maximum, lowest, type=type_)
                logits_type = _bare(from_mlir(logits.type))
                shifted = emitter.op("aten.sub.Tensor", logits, self.rank_maximum, type=logits_type)
                self.exponentials = emitter.op("aten.exp.default", shifted, type=logits_type)
        return self.rank_maximum

    def _sum(self, op: Operation, value: Value) -> None:
        """Move the factor per row out of a sum over columns."""
        call = read(op)
        if call is None or call.name != "aten.sum.dim_IntList" or call.args[1] != [1] or call.kwargs.get("dtype"):
            return
        emitter = Emitter(op.location)
        type_ = from_mlir(op.results[0].type)
        with mlir.InsertionPoint(op):
            total = emitter.op(call.name, self.exponentials, *call.args[1:], type=_bare(type_))
            factor = self.factors[value]
            if len(type_.shape) == 1:
                factor = emitter.op("aten.squeeze.dim", factor, 1, type=_bare(type_))
            scaled = emitter.op("aten.mul.Tensor", total, factor, type=type_)
        op.results[0].replace_all_uses_with(scaled)

    def _product(self, op: Operation) -> None:
        """Move factors per row out of a matrix product of exponentials and weights that is then summed over ranks."""
        call = read(op)
        if call is None or call.name != "aten.mm.default":
            return
        terms = self._terms(call.args[0])
        if terms is None or not _is_reduced(op.results[0], self.call.args[1]):
            return
        emitter = Emitter(op.location)
        type_ = from_mlir(op.results[0].type)
        with mlir.InsertionPoint(op):
            products = [self._times(term, call.args[1], type_, emitter) for term in terms]
            total = products[0]
            for product in products[1:]:
                total = emitter.op("aten.add.Tensor", total, product, type=_bare(from_mlir(total.type)))
            same_dtype = from_mlir(total.type).dtype == type_.dtype
            final = (
                emitter.op("aten.alias.default", total, type=type_)
                if same_dtype
                else emitter.op(_COPY, total, type=type_, dtype=type_.dtype)
            )
        op.results[0].replace_all_uses_with(final)

    def _times(self, term: _Term, weight: Value, type_: TensorType, emitter: Emitter) -> Value:
        """A term times the weights, in the dtype of its factors."""
        bare = _bare(type_)
        if term.index is None:
            matrix = self.exponentials
            assert matrix is not None
            matrix_type = TensorType(type_.dtype, from_mlir(matrix.type).shape)
            if matrix_type.dtype != from_mlir(matrix.type).dtype:
                matrix = emitter.op(_COPY, matrix, type=matrix_type, dtype=matrix_type.dtype)
            product = emitter.op("aten.mm.default", matrix, weight, type=bare)
        else:
            index_type = TensorType(torch.int64, type_.shape[:1])
            index = emitter.op("aten.squeeze.dim", term.index, 1, type=index_type)
            product = emitter.op("aten.index_select.default", weight, 0, index, type=bare)
        for factor in term.factors:
            dtype = from_mlir(factor.type).dtype
            if dtype != from_mlir(product.type).dtype:
                product = emitter.op(_COPY, product, type=TensorType(dtype, type_.shape), dtype=dtype)
            product = emitter.like("aten.mul.Tensor", product, factor)
        return product

    def _terms(self, value: Value) -> list[_Term] | None:
        """The terms of a matrix; None if they are not known."""
        if value in self.factors:
            return [_Term((self.factors[value],))]
        call = producer(value)
        if call is None:
            return None
        if call.name in _ELEMENTWISE_COPIES and _same_rows(call.args[0], value):
            return self._terms(call.args[0])
        if call.name == "aten.mul.Tensor" and len(call.values()) == 2 and _is_column(call.args[1], value):
            inner = self._terms(call.args[0])
            return inner and [_Term((*term.factors, call.args[1]), term.index) for term in inner]
        if call.name == "aten.scatter_add.default" and call.args[1] == 1 and _is_column(call.args[3], value):
            inner = self._terms(call.args[0])
            return inner and [*inner, _Term((call.args[3],), call.args[2])]
        return None


def _is_reduced(value: Value, axes: list[str]) -> bool:
    """Whether all uses of a value are sums over the axes, after changes of shape and dtype."""
    user_ops = users(value)
    return bool(user_ops) and all(_reduces(user, axes) for user in user_ops)


def _reduces(user: Operation, axes: list[str]) -> bool:
    """Whether an operation is a sum over the axes, or all uses of its result are."""
    call = read(user)
    if call is None:
        return False
    if call.name == ALL_REDUCE:
        return call.args[1:] == (axes, "sum")
    return call.name in ("aten.reshape.default", "aten.view.default", _COPY) and _is_reduced(user.results[0], axes)


def _unmasked(value: Value) -> tuple[Value, tuple[torch.dtype, ...]]:
    """The value before masks and copies of the same shape, and the dtypes of the copies."""
    dtypes: tuple[torch.dtype, ...] = ()
    while True:
        call = producer(value)
        if call is None or call.name not in _ELEMENTWISE_COPIES:
            return value, dtypes
        inner: Value = call.args[0]
        if not _same_rows(inner, value):
            return value, dtypes
        if call.name == _COPY:
            dtypes = (*dtypes, from_mlir(value.type).dtype)
        value = inner


def _is_column(value: object, matrix: Value) -> bool:
    """Whether a value has one element for each row of a matrix."""
    shape = from_mlir(matrix.type).shape
    return isinstance(value, mlir.Value) and len(shape) == 2 and from_mlir(value.type).shape == (shape[0], 1)


def _same_rows(a: Value, b: Value) -> bool:
    """Whether two values have as many rows of as many elements, over one dim or several."""
    shapes = [from_mlir(value.type).shape for value in (a, b)]
    return prod(shapes[0]) == prod(shapes[1]) and shapes[0][-1:] == shapes[1][-1:]


def _bare(type_: TensorType) -> TensorType:
    return TensorType(type_.dtype, type_.shape)
