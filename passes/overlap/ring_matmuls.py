"""Compute products in chunks beside the ring that gathers their operand, or that reduce-scatters their sum.

Before (over tp=2)                                      After
  %g = comm.all_gather %x over ["tp"], dim 1              %x1 = comm.permute %x over ["tp"], shift 1
  %r = aten.reshape %g, [128, 64]                         %y0 = aten.mm (reshape %x), %w
  %y = aten.mm %r, %w                                     %y1 = aten.mm (reshape %x1), %w
                                                          %y  = (cat %y0, %y1 in the order of the ranks)

  %z = aten.mm %a, %w                                     %s0 = aten.mm (chunk r - 1 of %a), %w
  %s = comm.reduce_scatter (reshape %z) ..                %h  = comm.permute %s0 over ["tp"], shift 1
                                                          %s1 = aten.mm (chunk r of %a), %w
                                                          %s  = aten.add %h, %s1

A gather's own shard comes first; at step s a rank computes on that of the rank s places before it. A sum travels the
other way round: at each rank it takes up the part of the chunk that it is of, and it ends at the rank that keeps it.
Each hop runs beside the product before it. All products of one gather share its ring, and all terms of one sum. What
else reads the gathered tensor gets it from the ring.

Needs: level `comm`, before `start-collectives`.   Keeps: values; a reduce-scatter adds in the order of the ring.
Cost: as many bytes on the wires in smaller messages; a copy that brings chunks into order.
Source: Wang et al., "Overlap Communication with Dependent Computation via Decomposition" (ASPLOS 2023); PyTorch's
asynchronous tensor parallelism.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import ClassVar

import torch

from ...dsl.communication.overlap import ALL_GATHER_MATMUL, MATMUL_REDUCE_SCATTER
from ...dsl.plan import Plan
from ...ir.bindings import Operation, Value, mlir
from ...ir.collectives import ALL_GATHER, PERMUTE, REDUCE_SCATTER
from ...ir.module import Level, Module, operations
from ...ir.operations import read
from ...ir.placement import Reduce, axes_size
from ...ir.types import TensorType, from_mlir
from ..base import Pass, Remark, RemarkKind, Report
from ..collective_text import collective_text
from ..plan_effects import OVERLAP_KEY
from ..rewriting import Applied, Declined, Emitter, Outcome, Site, erase_unused, producer, rewrite, users

_MATMULS = {"aten.mm.default": 0, "aten.addmm.default": 1}
"""Products of matrices, and where each has its rows; `addmm` has a vector before them, which it adds to each."""
_RESHAPES = ("aten.reshape.default", "aten.view.default")
_VIEWS = ("aten.reshape_default", "aten.view_default", "aten.t_default")
_INDEX = torch.int64


@dataclass(frozen=True)
class RingMatmuls(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "ring-matmuls"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    plan: Plan
    """The plan; what its `overlap` says to fuse is used."""

    def run(self, module: Module) -> Report:
        said = self.plan.overlap
        patterns = {ALL_GATHER_MATMUL: (ALL_GATHER, _gather), MATMUL_REDUCE_SCATTER: (REDUCE_SCATTER, _scatter)}
        count, remarks = 0, list[Remark]()
        for fusion, (name, fuse) in patterns.items():
            if fusion in said.fuse:
                report = rewrite(module, self.name, {name: lambda site, fuse=fuse: fuse(site, module)})  # type: ignore[misc]
                count += report.rewritten
                remarks += report.remarks
                if not report.rewritten:
                    remarks.append(self._nothing(fusion, report))
        for function in module.functions().values() if count else ():
            erase_unused(function)
        return Report(count, tuple(remarks), {OVERLAP_KEY: ""} if count else {})

    def _nothing(self, fusion: str, report: Report) -> Remark:
        """The warning for a fusion that was not found, with the nearest miss."""
        kind = fusion.replace("matmul", "").strip("+")
        nearest = next((remark for remark in report.remarks if "product" in remark.message), None)
        nearest = nearest or next(iter(report.remarks), None)
        why = f"{nearest.message} ({nearest.origin})" if nearest else f"there is no {kind} over more than one rank"
        message = f'"{fusion}" fuses nothing: {why}'
        return Remark(self.name, RemarkKind.WARNING, message, span=self.plan.overlap.spans.get("fuse"))


@dataclass(frozen=True)
class _Chunks:
    """The rows of a tensor (.., rows, .., last) as (before, ranks, inside): its dim `dim` is in chunks."""

    axes: Sequence[str]
    ranks: int
    before: int
    inside: int

    def coordinate(self, e: Emitter) -> Value:
        """The number of this rank in its group."""
        return e.op("comm.offset", list(self.axes), 1, type=TensorType(_INDEX, ()))

    def rows(self, e: Emitter, value: Value) -> Value:
        """One chunk as a matrix."""
        shape = (self.before * self.inside, from_mlir(value.type).shape[-1])
        return reshaped(e, value, shape)

    def in_order(self, e: Emitter, chunks: Sequence[Value], type_: TensorType) -> Value:
        """The chunks of the steps of a gather, in the order of the ranks, with the given type."""
        last = type_.shape[-1]
        parts = [reshaped(e, chunk, (self.before, 1, self.inside, last)) for chunk in chunks]
        shape = (self.before, self.ranks, self.inside, last)
        steps = e.op("aten.cat.default", parts, 1, type=TensorType(type_.dtype, shape))
        numbers = TensorType(_INDEX, (self.ranks,))
        owners = e.op("aten.arange.default", self.ranks, type=numbers, dtype=_INDEX)
        behind = e.op("aten.sub.Tensor", self.coordinate(e), owners, type=numbers)
        order = e.like("aten.remainder.Scalar", behind, self.ranks)
        ordered = e.op("aten.index_select.default", steps, 1, order, type=TensorType(type_.dtype, shape))
        return e.op("aten.reshape.default", ordered, list(type_.shape), type=type_)

    def chunk(self, e: Emitter, rows: Value, coordinate: Value, step: int) -> Value:
        """Of a matrix: the rows of the chunk that a sum is of at a step of its way, as a matrix."""
        type_ = from_mlir(rows.type)
        last = type_.shape[-1]
        whole = reshaped(e, rows, (self.before, self.ranks, self.inside, last))
        moved = e.like("aten.add.Scalar", coordinate, self.ranks - 1 - step)
        number = reshaped(e, e.like("aten.remainder.Scalar", moved, self.ranks), (1,))
        part = TensorType(type_.dtype, (self.before, 1, self.inside, last))
        return reshaped(
            e, e.op("aten.index_select.default", whole, 1, number, type=part), (self.before * self.inside, last)
        )


def reshaped(e: Emitter, value: Value, shape: Sequence[int]) -> Value:
    """A value with another shape and no placement."""
    type_ = TensorType(from_mlir(value.type).dtype, tuple(shape))
    return e.op("aten.reshape.default", value, list(shape), type=type_)


def _gather(site: Site, module: Module) -> Outcome:
    """Let the products of a gathered tensor run beside the ring that gathers it."""
    shard, axes, dim = site.call.args
    what, ranks = collective_text(site.op), axes_size(module.mesh, tuple(axes))
    if ranks == 1:
        return None
    local = from_mlir(shard.type)
    products = [product for product in _products_of(site.op.results[0]) if _is_ready(product, site.op)]
    if not products:
        return Declined(f"{what} is no ring: {_why_no_product(site.op.results[0])}")
    if dim == len(local.shape) - 1:
        return Declined(f"{what} is no ring: the product sums over the dim that is gathered")
    chunks = _Chunks(axes, ranks, prod(local.shape[:dim]), prod(local.shape[dim:-1]))
    for product in products:
        for value in _others(product):
            _compute_before(value, site.op)
    e, block, blocks = site.emitter, shard, list[Value]()
    results: list[list[Value]] = [[] for _ in products]
    for step in range(ranks):
        blocks.append(block)
        own = block
        if step + 1 < ranks:
            block = e.op(PERMUTE, block, list(axes), 1, type=TensorType(local.dtype, local.shape))
        rows = chunks.rows(e, own)
        for result, product in zip(results, products, strict=True):
            result.append(_on_rows(e, product, rows))
    for result, product in zip(results, products, strict=True):
        value = chunks.in_order(e, result, from_mlir(product.results[0].type))
        product.results[0].replace_all_uses_with(value)
        product.operation.erase()
    site.replace(chunks.in_order(e, blocks, site.type))
    count = f"{len(products)} product{'s' if len(products) > 1 else ''}"
    return Applied(f"{what} is a ring of {ranks} chunks beside {count}")


def _products_of(value: Value) -> list[Operation]:
    """The products whose rows are those of a value."""
    found = []
    for user in users(value):
        call = read(user)
        if call is None:
            continue
        if call.name in _RESHAPES and _keeps_rows(value, user.results[0]):
            found += _products_of(user.results[0])
        elif _is_product(user) and user.operands[_MATMULS[call.name]] == value:
            found.append(user)
    return list(dict.fromkeys(found))


def _is_product(op: Operation) -> bool:
    """Whether each row of an operation's result is a product of that row of its operand."""
    call = read(op)
    if call is None or call.name not in _MATMULS:
        return False
    return all(len(from_mlir(value.type).shape) == 1 for value in op.operands[: _MATMULS[call.name]])


def _others(product: Operation) -> list[Value]:
    """What a product takes beside its rows."""
    call = read(product)
    assert call is not None
    return [value for index, value in enumerate(product.operands) if index != _MATMULS[call.name]]


def _on_rows(e: Emitter, product: Operation, rows: Value) -> Value:
    """A product of other rows."""
    call = read(product)
    assert call is not None
    args = list(call.args)
    args[_MATMULS[call.name]] = rows
    type_ = from_mlir(product.results[0].type)
    shape = (from_mlir(rows.type).shape[0], type_.shape[-1])
    return e.op(call.name, *args, type=TensorType(type_.dtype, shape), **call.kwargs)


def _why_no_product(value: Value) -> str:
    """Why none of what reads a gathered tensor is a product that can run in chunks."""
    if _products_of(value):
        return "the other factor of its product is computed from it, or behind other communication"
    readers = users(value)
    readers += [user for reader in readers if reader.operation.name in _VIEWS for user in users(reader.results[0])]
    names = sorted({reader.operation.name.partition(".")[2] for reader in readers} - {""})
    return f"what reads it is {', '.join(names) or 'nothing here'}, no product of its rows"


def _keeps_rows(value: Value, reshaped_value: Value) -> bool:
    """Whether a reshape only joins dims of rows: the last dim is the same, and the result is a matrix."""
    before, after = (from_mlir(each.type).shape for each in (value, reshaped_value))
    return len(after) == 2 and before[-1] == after[-1]


def _is_ready(product: Operation, gather: Operation) -> bool:
    """Whether what a product takes beside its rows can be computed before the gather."""
    needed = [op for value in _others(product) for op in _behind(value, gather)]
    return gather.results[0] not in _others(product) and all(
        _is_pure(op) and gather.results[0] not in op.operands for op in needed
    )


def _is_pure(op: Operation) -> bool:
    call = read(op)
    return call is not None and not op.operation.name.startswith("comm.")


def _behind(value: Value, place: Operation) -> list[Operation]:
    """The operations behind a place on which a value depends, in order."""
    found: dict[Operation, None] = {}
    waiting = [value]
    while waiting:
        maker = waiting.pop().owner
        if isinstance(maker, mlir.Block) or maker in found or not place.operation.is_before_in_block(maker.operation):
            continue
        found[maker] = None
        waiting += maker.operands
    order = {op: number for number, op in enumerate(operations(place.operation.parent.opview))} if found else {}
    return sorted(found, key=lambda op: order[op])


def _compute_before(value: Value, place: Operation) -> None:
    """Move what a value depends on before a place."""
    for op in _behind(value, place):
        op.operation.move_before(place.operation)


def _scatter(site: Site, module: Module) -> Outcome:
    """Let a sum of products travel round the ring, a chunk at a time."""
    value, axes, dim, reduction = site.call.args
    what, ranks = collective_text(site.op), axes_size(module.mesh, tuple(axes))
    if ranks == 1:
        return None
    shape = from_mlir(value.type).shape
    if reduction != Reduce.SUM or dim == len(shape) - 1:
        why = f"it is a {reduction}" if reduction != Reduce.SUM else "it cuts the columns of its product"
        return Declined(f"{what} is no ring: {why}")
    terms = _terms(value)
    if isinstance(terms, str):
        return Declined(f"{what} is no ring: {terms}")
    chunks = _Chunks(axes, ranks, prod(shape[:dim]), shape[dim] // ranks * prod(shape[dim + 1 : -1]))
    e = site.emitter
    part = TensorType(site.type.dtype, (chunks.before * chunks.inside, shape[-1]))
    coordinate = chunks.coordinate(e)
    total: Value | None = None
    for step in range(ranks):
        came = None if total is None else e.op(PERMUTE, total, list(axes), 1, type=part)
        own = [_on_rows(e, term, chunks.chunk(e, _rows_of(term), coordinate, step)) for term in terms]
        added = own if came is None else [came, *own]
        total = reduce(lambda a, b: e.op("aten.add.Tensor", a, b, type=part), added)
    assert total is not None
    site.replace(e.op("aten.reshape.default", total, list(site.type.shape), type=site.type))
    count = f"{len(terms)} product{'s' if len(terms) > 1 else ''}"
    return Applied(f"{what} is a ring of {ranks} chunks beside {count}")


def _rows_of(product: Operation) -> Value:
    call = read(product)
    assert call is not None
    return product.operands[_MATMULS[call.name]]


def _terms(value: Value) -> list[Operation] | str:
    """The products whose sum a value is; or why it is none."""
    if len(users(value)) != 1:
        return "its product is used elsewhere, too"
    call = producer(value)
    if call is None:
        return "what it adds is no product but an argument"
    if _is_product(value.owner):
        return [value.owner]
    if call.name in _RESHAPES and from_mlir(call.args[0].type).shape[-1:] == from_mlir(value.type).shape[-1:]:
        return _terms(call.args[0])
    shapes = {from_mlir(each.type).shape for each in call.values()}
    if call.name == "aten.add.Tensor" and call.kwargs.get("alpha", 1) == 1 and len(call.values()) == 2 > len(shapes):
        both = [_terms(each) for each in call.args]
        wrong = next((each for each in both if isinstance(each, str)), None)
        return wrong or [term for each in both if not isinstance(each, str) for term in each]
    return f"what it adds is the result of {call.name}, no product"
