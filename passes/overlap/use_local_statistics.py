"""Take exponentials relative to a rank's own maximum, and put right by rows when ranks know the maximum of all.

Before                                              After
  %m = aten.amax %y, [1]                              %m = aten.amax %y, [1]
  %a = comm.all_reduce %m over ["pp"] max             %c = aten.clamp_min %m
  %e = aten.exp (%y - %a)                             %e = aten.exp (%y - %c)
  %s = comm.all_reduce (sum %e) over ["pp"] sum       %s0 = aten.sum %e
                                                      %a = comm.all_reduce %m over ["pp"] max
                                                      %s = comm.all_reduce (%s0 * exp(%c - %a)) over ["pp"] sum
  %p = aten.exp (%y - %l)                             %p = %e * exp(%c - %l)
  %d = aten.mm (%p * %r), %w                          %d = (aten.mm %e, %w) * exp(%c - %l) * %r

All ranks share a vocabulary; each has some columns of %y, and must wait for the others for what is over all columns.
With this pass only operations on rows wait: whatever is large is done before. exp(y - l) = exp(y - c) exp(c - l) for
any column c, and a factor of rows may be taken out of a sum over columns, or of a product of matrices. With two
`barriers` the product stays behind the first of them.

Needs: level `comm`, lowered idioms.   Keeps: values, up to rounding.   Cost: a product more of rows of %w.
Source: Balancing Pipeline Parallelism with Vocabulary Parallelism (arXiv 2411.05288), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
_KEEPS = ("aten.reshape.default", "aten.view.default", _COPY, "comm.mask")
"""What keeps elements where shapes are equal, but for rounding and padding."""


@dataclass(frozen=True)
class UseLocalStatistics(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "use-local-statistics"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    plan: Plan
    """The plan; its statement about the pipeline is used."""

    def run(self, module: Module) -> Report:
        said = self.plan.pipeline
        if said is None:
            return Report()
        remarks, count = CountedRemarks(self.name), 0
        main = module.functions()["main"]
        for op in operations(main):
            call = producer(op.results[0]) if op.results else None
            if call is not None and call.name == ALL_REDUCE and said.axis in call.args[1]:
                found = _Statistics(op, call, said.barriers == 1).rewrite()
                count += found
                if found:
                    remarks.applied(
                        "exponentials are taken relative to a rank's own maximum", from_location(op.location)
                    )
        if count:
            erase_unused(main)
        return Report(count, remarks.remarks())


@dataclass(frozen=True)
class _Term:
    """A part of a matrix: exponentials, or one element of each row at `index`; times `factors`, columns."""

    factors: tuple[Value, ...]
    index: Value | None = None


@dataclass
class _Statistics:
    """The maximum of some logits, reduced over ranks, and what is made of both."""

    op: Operation
    call: Call
    moves_products: bool
    local: dict[Value, Value] = field(default_factory=dict)
    """For each exponential that was rewritten its factor of rows."""
    base: Value | None = None
    """The rank's own maximum, finite also where a rank has no column."""
    exponentials: Value | None = None
    """Of the logits relative to it."""

    def rewrite(self) -> int:
        """How many exponentials are relative to the rank's own maximum now."""
        own = producer(self.call.args[0])
        if self.call.args[2] != "max" or own is None or own.name != "aten.amax.default" or own.args[1:] != ([1], True):
            return 0
        logits = own.args[0]
        found = [op for op in operations(self.op.parent.opview) if self._is_exponential(op, logits)]
        with context():
            for op in found:
                self._take_apart(op, logits)
            for value in list(self.local):
                for use in users(value):
                    self._sum(use, value)
            for op in operations(self.op.parent.opview) if self.moves_products else ():
                self._product(op)
        return len(found)

    def _is_exponential(self, op: Operation, logits: Value) -> bool:
        """Whether it is exp(y - c) of the logits, masked or not, and a column."""
        call = read(op)
        inner = producer(call.args[0]) if call is not None and call.name == "aten.exp.default" else None
        if inner is None or inner.name != "aten.sub.Tensor" or inner.kwargs.get("alpha", 1) != 1:
            return False
        value, column = inner.args
        return _unmasked(value) == _unmasked(logits) and _is_column(column, value)

    def _take_apart(self, op: Operation, logits: Value) -> None:
        """exp(y - c) becomes exp(y - own maximum) times a factor for each row."""
        emitter = Emitter(op.location)
        inner = producer(op.operands[0])
        assert inner is not None
        column = inner.args[1]
        bare = _bare(from_mlir(column.type))
        with mlir.InsertionPoint(op):
            own = self._base(logits)
            factor = emitter.op("aten.exp.default", emitter.op("aten.sub.Tensor", own, column, type=bare), type=bare)
            type_ = from_mlir(op.results[0].type)
            made = emitter.op("aten.mul.Tensor", self.exponentials, factor, type=type_)
        op.results[0].replace_all_uses_with(made)
        self.local[made] = factor

    def _base(self, logits: Value) -> Value:
        """Make what is relative to the rank's own maximum, once."""
        own = self.call.args[0]
        if self.base is None:
            emitter = Emitter(self.op.location)
            with mlir.InsertionPoint(self.op):
                type_ = _bare(from_mlir(own.type))
                least = torch.finfo(type_.dtype).min
                self.base = emitter.op("aten.clamp_min.default", own, least, type=type_)
                wide = _bare(from_mlir(logits.type))
                shifted = emitter.op("aten.sub.Tensor", logits, self.base, type=wide)
                self.exponentials = emitter.op("aten.exp.default", shifted, type=wide)
        return self.base

    def _sum(self, op: Operation, value: Value) -> None:
        """A sum over columns: the factor of rows is taken out of it."""
        call = read(op)
        if call is None or call.name != "aten.sum.dim_IntList" or call.args[1] != [1] or call.kwargs.get("dtype"):
            return
        emitter = Emitter(op.location)
        type_ = from_mlir(op.results[0].type)
        with mlir.InsertionPoint(op):
            total = emitter.op(call.name, self.exponentials, *call.args[1:], type=_bare(type_))
            factor = self.local[value]
            if len(type_.shape) == 1:
                factor = emitter.op("aten.squeeze.dim", factor, 1, type=_bare(type_))
            made = emitter.op("aten.mul.Tensor", total, factor, type=type_)
        op.results[0].replace_all_uses_with(made)

    def _product(self, op: Operation) -> None:
        """A product of what is made of exponentials with weights, to be summed up over ranks."""
        call = read(op)
        if call is None or call.name != "aten.mm.default":
            return
        terms = self._terms(call.args[0])
        if terms is None or not _is_reduced(op.results[0], self.call.args[1]):
            return
        emitter = Emitter(op.location)
        type_ = from_mlir(op.results[0].type)
        with mlir.InsertionPoint(op):
            made = [self._times(term, call.args[1], type_, emitter) for term in terms]
            total = made[0]
            for each in made[1:]:
                total = emitter.op("aten.add.Tensor", total, each, type=_bare(from_mlir(total.type)))
            same = from_mlir(total.type).dtype == type_.dtype
            final = (
                emitter.op("aten.alias.default", total, type=type_)
                if same
                else emitter.op(_COPY, total, type=type_, dtype=type_.dtype)
            )
        op.results[0].replace_all_uses_with(final)

    def _times(self, term: _Term, weight: Value, type_: TensorType, emitter: Emitter) -> Value:
        """A term times the weights, in the dtype of its factors."""
        plain = _bare(type_)
        if term.index is None:
            matrix = self.exponentials
            assert matrix is not None
            low = TensorType(type_.dtype, from_mlir(matrix.type).shape)
            if low.dtype != from_mlir(matrix.type).dtype:
                matrix = emitter.op(_COPY, matrix, type=low, dtype=low.dtype)
            made = emitter.op("aten.mm.default", matrix, weight, type=plain)
        else:
            rows = TensorType(torch.int64, type_.shape[:1])
            index = emitter.op("aten.squeeze.dim", term.index, 1, type=rows)
            made = emitter.op("aten.index_select.default", weight, 0, index, type=plain)
        for factor in term.factors:
            dtype = from_mlir(factor.type).dtype
            if dtype != from_mlir(made.type).dtype:
                made = emitter.op(_COPY, made, type=TensorType(dtype, type_.shape), dtype=dtype)
            made = emitter.like("aten.mul.Tensor", made, factor)
        return made

    def _terms(self, value: Value) -> list[_Term] | None:
        """What a matrix is the sum of; None where that is not known."""
        if value in self.local:
            return [_Term((self.local[value],))]
        call = producer(value)
        if call is None:
            return None
        if call.name in _KEEPS and from_mlir(call.args[0].type).shape == from_mlir(value.type).shape:
            return self._terms(call.args[0])
        if call.name == "aten.mul.Tensor" and len(call.values()) == 2 and _is_column(call.args[1], value):
            inner = self._terms(call.args[0])
            return inner and [_Term((*term.factors, call.args[1]), term.index) for term in inner]
        if call.name == "aten.scatter_add.default" and call.args[1] == 1 and _is_column(call.args[3], value):
            inner = self._terms(call.args[0])
            return inner and [*inner, _Term((call.args[3],), call.args[2])]
        return None


def _is_reduced(value: Value, axes: list[str]) -> bool:
    """Whether all that is made of a value is a sum over the axes, after changes of shape and dtype."""
    found = users(value)
    return bool(found) and all(_reduces(user, axes) for user in found)


def _reduces(user: Operation, axes: list[str]) -> bool:
    """Whether an operation is a sum over the axes, or what is made of it is."""
    call = read(user)
    if call is None:
        return False
    if call.name == ALL_REDUCE:
        return call.args[1:] == (axes, "sum")
    return call.name in ("aten.reshape.default", "aten.view.default", _COPY) and _is_reduced(user.results[0], axes)


def _unmasked(value: Value) -> tuple[Value, tuple[torch.dtype, ...]]:
    """What a value is without padding set, in the shape in which it was made; and the dtypes that it went through."""
    dtypes: tuple[torch.dtype, ...] = ()
    while True:
        call = producer(value)
        if call is None or call.name not in _KEEPS:
            return value, dtypes
        inner: Value = call.args[0]
        if from_mlir(inner.type).shape != from_mlir(value.type).shape:
            return value, dtypes
        if call.name == _COPY:
            dtypes = (*dtypes, from_mlir(value.type).dtype)
        value = inner


def _is_column(value: object, matrix: Value) -> bool:
    """Whether a value has one element for each row of a matrix."""
    shape = from_mlir(matrix.type).shape
    return isinstance(value, mlir.Value) and len(shape) == 2 and from_mlir(value.type).shape == (shape[0], 1)


def _bare(type_: TensorType) -> TensorType:
    return TensorType(type_.dtype, type_.shape)
