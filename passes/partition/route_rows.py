"""Write out where the rows of products by expert go: to the rank that has their expert, and back.

Before (a rank has S rows, E of the experts)     After
  %h = comm.expert_linear %x, %w, %experts,        counts of rows for each expert, exchanged by comm.all_to_all
         axes ["ep"], bound 96                     %r = comm.all_to_all_rows of %x, sorted by expert     (96, K)
  %a = aten.silu %h                                %h = stretto.grouped_mm %r, %w, %ends
  %y = comm.expert_linear %a, %v, %experts, ..     %a = aten.silu %h                                     (96, F)
                                                   %g = stretto.grouped_mm %a, %v, %ends
                                                   %y = comm.all_to_all_rows of %g, back in the rows' order

What products by expert compute from each other, each row alone, is computed where the experts are: rows go there once
and come back once, forward and backward. Where no axis cuts experts, rows are sorted by expert and nothing is sent.
What other ranks send stands in the order of ranks, so it is sorted again by expert.

Needs: level `comm`, forward and backward in one function.   Keeps: values (up to the order of sums).
Cost: the rows past those that came are computed too, with no product for them; `bound` says how many there may be.
Source: GShard (arXiv:2006.16668) for the exchange; MegaBlocks (arXiv:2211.15841) for products in groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import ClassVar

import torch

from ...ir.bindings import Operation, Value, mlir
from ...ir.collectives import ALL_TO_ALL, ALL_TO_ALL_ROWS, EXPERT_LINEAR, EXPERT_PRODUCTS
from ...ir.dialects.context import context
from ...ir.locations import from_location
from ...ir.module import Level, Module, call_counts, operations
from ...ir.operations import Call, build, read
from ...ir.placement import axes_size
from ...ir.types import TensorType, element_bytes, from_mlir, to_mlir
from ..base import Pass, Report
from ..counted_remarks import CountedRemarks
from ..graph import Graph, Node
from ..rewriting import Emitter, erase_unused, producer, site_weights
from ..row_operations import has_rows, on_rows, takes_rows_alone
from .routed_values import repeated, row_bytes, same_in_all_rows

_FULL = "aten.full.default"
_INDEX, _RESHAPE, _SUM = "aten.index.Tensor", "aten.reshape.default", "aten.sum.dim_IntList"
_LONG = torch.int64
_ZERO_OF_ZEROS = ("aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor")
"""Operations that make zeros of rows of zeros."""


def figures_of(axes: Iterable[str]) -> tuple[str, str]:
    """The names of the figures of experts over axes: the bytes of rows that a rank sends, and those of weights."""
    text = ", ".join(sorted(axes))
    return f"rows over {text}", f"weights over {text}"


@dataclass(frozen=True)
class RouteRows(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "route-rows"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    joins_layers: ClassVar[bool] = True

    def run(self, module: Module) -> Report:
        weights, remarks, count = site_weights(module), CountedRemarks(self.name), 0
        calls, figures = call_counts(module), Counter[str]()
        for name, function in module.functions().items():
            router = _Router(Graph.of(function), module)
            count += router.route() * weights[name]
            for message, op in router.messages():
                remarks.applied(message, from_location(op.location), weights[name])
            erase_unused(function)
            for message, op in router.advice():
                remarks.missed(message, from_location(op.location), weights[name])
            for figure, number in router.figures():
                figures[figure] += number * calls[name]
        return Report(count, remarks.remarks(), figures=figures)


@dataclass(frozen=True)
class _Route:
    """Where the rows of one choice of experts go on a rank."""

    experts: Value
    axes: tuple[str, ...]
    bound: int
    order: Value
    """The row that stands at each place when rows are sorted by expert."""
    inverse: Value
    ends: Value
    """Where the rows of each of the rank's experts end, sorted by expert."""
    sent: Value | None = None
    received: Value | None = None
    """The rows for and from each rank."""
    regroup: Value | None = None
    """The place among the rows that came, for each row sorted by expert."""
    ungroup: Value | None = None
    dropped: int | None = None
    """The expert of rows that were dropped, which are sent nowhere, and for which zeros come back; None: of no row."""

    @property
    def rows(self) -> tuple[int, ...]:
        """The leading dims of what is routed."""
        return from_mlir(self.experts.type).shape


@dataclass
class _Router:
    """The rewrite of one function."""

    graph: Graph
    module: Module
    routes: dict[tuple[Value, tuple[str, ...], int, bool], _Route] = field(default_factory=dict)
    _routed: dict[tuple[int, Value], Value] = field(default_factory=dict)
    """By route and value, its rows where their experts are, sorted by expert."""
    _weights_moved: Counter[int] = field(default_factory=Counter)
    """By route, the bytes of a rank's experts, once for each time that weights moved instead would cross ranks."""

    def route(self) -> int:
        """Replace every product by expert; returns how many there were."""
        count = 0
        for node in self.graph.nodes:
            emitter = Emitter(node.op.location)
            if node.name in EXPERT_PRODUCTS:
                count += 1
                with context(), mlir.InsertionPoint(node.op):
                    self._replace(node, emitter)
            elif (route := self._common_route(node)) is not None:
                with context(), mlir.InsertionPoint(node.op):
                    self._bring_back_together(route, node, emitter)
        return count

    def _common_route(self, node: Node) -> _Route | None:
        """The route of several values from experts that an operation makes one of, each row alone."""
        for route in self.routes.values():
            rows = [v for v in dict.fromkeys(node.operands) if has_rows(v, route.rows)]
            came = len(rows) > 1 and all((id(route), v) in self._routed for v in rows)
            came = came and (route.dropped is None or node.name in _ZERO_OF_ZEROS)
            if came and route.axes and len(node.values) == 1 and takes_rows_alone(node, route.rows):
                result = row_bytes(node.values[0], route.rows)
                return route if result < sum(row_bytes(v, route.rows) for v in rows) else None
        return None

    def _bring_back_together(self, route: _Route, node: Node, emitter: Emitter) -> None:
        """Compute an operation where the experts are, and send its result back in place of its operands."""
        self._compute_there(route, node, emitter)
        there = self._routed[id(route), node.values[0]]
        back = self._back(route, there, from_mlir(node.values[0].type), emitter)
        self._routed[id(route), back] = there
        self._replace_value(node, back)

    def messages(self) -> Iterator[tuple[str, Operation]]:
        """What was done, each with an operation that says where."""
        for route in self.routes.values():
            if route.axes:
                room = f"room for {route.bound} rows, {prod(route.rows)} a rank on average"
                yield f"rows go to the ranks of their experts over {', '.join(route.axes)}: {room}", route.order.owner

    def advice(self) -> Iterator[tuple[str, Operation]]:
        """Where it sends fewer bytes to move weights instead of rows: their gathers, and the sum of their gradients.

        Source: Tutel (arXiv:2206.03382), section 3.1: the cheaper of the two flows.
        """
        for route in self.routes.values():
            by_rows, by_weights = self._bytes(route)
            if route.axes and by_weights < by_rows:
                owner = from_location(route.order.owner.location).module_path.rpartition(".")[2]
                statement = f'experts "*.{owner}" over {", ".join(route.axes)} {{ move weights }}'
                yield (
                    f"a rank sends {by_rows} bytes of rows, and would send {by_weights} of weights: {statement} "
                    "moves these instead, and move auto chooses",
                    route.order.owner,
                )

    def figures(self) -> Iterator[tuple[str, int]]:
        """By the axes of experts, the bytes of rows that a rank sends, and those of weights that it would send."""
        for route in self.routes.values():
            if route.axes:
                yield from zip(figures_of(route.axes), self._bytes(route), strict=True)

    def _bytes(self, route: _Route) -> tuple[int, int]:
        ranks = axes_size(self.module.mesh, route.axes)
        return self._exchanged(route) * (ranks - 1) // ranks, self._weights_moved[id(route)] * (ranks - 1)

    def _exchanged(self, route: _Route) -> int:
        """The bytes of the even share of rows that a rank exchanges, those for itself included."""
        calls = [call for op in operations(self.graph.function) if (call := read(op)) is not None]
        exchanges = [c for c in calls if c.name == ALL_TO_ALL_ROWS and c.args[-1] in (route.sent, route.received)]
        return prod(route.rows) * sum(row_bytes(call.args[0], (1,)) for call in exchanges)

    def _replace(self, node: Node, emitter: Emitter) -> None:
        assert node.call is not None
        x, other, experts, axes, *numbers = node.call.args
        is_linear = node.name == EXPERT_LINEAR
        *counts, bound, capped = numbers
        count = from_mlir(other.type).shape[0] if is_linear else counts[0]
        key = experts, tuple(axes), bound, capped
        if key not in self.routes:
            self.routes[key] = self._new_route(*key, count, emitter)
        route, type_ = self.routes[key], from_mlir(node.values[0].type)
        if is_linear:
            rows = self._rows(route, x, emitter)
            result = TensorType(type_.dtype, (route.bound, type_.shape[-1]))
            product = emitter.op("stretto.grouped_mm.default", rows, other, route.ends, type=result)
            back = self._back(route, product, type_, emitter)
            self._routed[id(route), back] = product
            self._replace_value(node, back)
            if not node.origin.backward:
                self._weights_moved[id(route)] += element_bytes(from_mlir(other.type))  # gathered for the forward
        else:
            self._weights_moved[id(route)] += 2 * element_bytes(type_)  # gathered for the backward, and summed
            a, b = (self._rows(route, v, emitter) for v in (x, other))
            self._replace_value(
                node, emitter.op("stretto.grouped_outer_products.default", a, b, route.ends, type=type_)
            )

    def _replace_value(self, node: Node, new: Value) -> None:
        old = node.values[0]
        old.replace_all_uses_with(new)
        for user in self.graph.users.get(old, []):
            user.operands = [new if v == old else v for v in user.operands]
            if user.call is not None:
                user.call = user.call.replace_values(user.operands)
        self.graph.users[new] = self.graph.users.get(old, [])

    def _new_route(
        self, experts: Value, axes: tuple[str, ...], bound: int, capped: bool, count: int, emitter: Emitter
    ) -> _Route:
        """The orders and counts of rows; `count` is the number of a rank's own experts."""
        ranks = axes_size(self.module.mesh, axes)
        total, rows = ranks * count, prod(from_mlir(experts.type).shape)
        flat = _reshaped(experts, (rows,), emitter)
        made = producer(experts)
        if made is not None and made.name == "comm.mask":  # rows of no expert come last
            flags = emitter.op("aten.ge.Scalar", flat, 0, type=TensorType(torch.bool, (rows,)))
            flat = emitter.op("aten.where.ScalarOther", flags, flat, total, type=from_mlir(flat.type))
        ordered, order = _sorted(flat, emitter)
        inverse = _inverse(order, emitter)
        numbers = TensorType(_LONG, (total,))
        each = emitter.op("aten.arange.default", total, type=numbers)
        ends = emitter.op("aten.searchsorted.Tensor", ordered, each, type=numbers, right=True)
        if not axes:
            # a product in groups makes zeros of rows that were dropped
            return _Route(experts, axes, bound, order, inverse, ends)
        starts = emitter.op("aten.searchsorted.Tensor", ordered, each, type=numbers)
        counts = emitter.op("aten.sub.Tensor", ends, starts, type=numbers)
        came = emitter.op(ALL_TO_ALL, counts, list(axes), 0, 0, type=numbers)
        sent, received = (self._by_rank(c, (ranks, count), 1, emitter) for c in (counts, came))
        own = self._by_rank(came, (ranks, count), 0, emitter)
        own_ends = emitter.like("aten.cumsum.default", own, 0)
        regroup = self._regrouped(came, (ranks, count), bound, emitter)
        ungroup, dropped = _inverse(regroup, emitter), total if capped else None
        return _Route(experts, axes, bound, order, inverse, own_ends, sent, received, regroup, ungroup, dropped)

    def _by_rank(self, counts: Value, shape: tuple[int, int], dim: int, emitter: Emitter) -> Value:
        """Counts (ranks * experts), summed over the experts (dim 1) or the ranks (dim 0)."""
        table = _reshaped(counts, shape, emitter)
        return emitter.op(_SUM, table, [dim], type=TensorType(_LONG, (shape[1 - dim],)))

    def _regrouped(self, came: Value, shape: tuple[int, int], bound: int, emitter: Emitter) -> Value:
        """The order by expert of rows that came from rank after rank, each sorted by expert."""
        ranks, count = shape
        rows, flags = TensorType(_LONG, (bound,)), TensorType(torch.bool, (bound,))
        ends = emitter.like("aten.cumsum.default", came, 0)
        places = emitter.op("aten.arange.default", bound, type=rows)
        segment = emitter.op("aten.searchsorted.Tensor", ends, places, type=rows, right=True)
        expert = emitter.op("aten.remainder.Scalar", segment, count, type=rows)
        is_row = emitter.op("aten.lt.Scalar", segment, ranks * count, type=flags)
        expert = emitter.op("aten.where.ScalarOther", is_row, expert, count, type=rows)
        return _sorted(expert, emitter)[1]

    def _rows(self, route: _Route, value: Value, emitter: Emitter) -> Value:
        """The rows of a value where their experts are: computed there if that sends less."""
        key = id(route), value
        if key not in self._routed:
            number = same_in_all_rows(value)
            if number is not None:
                type_ = from_mlir(value.type)
                there = TensorType(type_.dtype, (route.bound, *type_.shape[len(route.rows) :]))
                fill = number.args[1]
                self._routed[key] = emitter.op(_FULL, list(there.shape), fill, type=there, dtype=there.dtype)
            elif self._is_cheaper_there(route, value):
                self._compute_there(route, self.graph.maker[value], emitter)
            else:
                self._routed[key] = self._there(route, value, emitter)
        return self._routed[key]

    def _is_cheaper_there(self, route: _Route, value: Value) -> bool:
        return self._cost(route, value) < row_bytes(value, route.rows)

    def _cost(self, route: _Route, value: Value) -> int:
        """The bytes to send for a row of a value, at the least."""
        is_there = (id(route), value) in self._routed or not has_rows(value, route.rows)
        if is_there or same_in_all_rows(value) is not None:
            return 0
        direct = row_bytes(value, route.rows)
        node = self.graph.maker.get(value)
        if node is None or not takes_rows_alone(node, route.rows):
            return direct
        return min(direct, sum(self._cost(route, v) for v in dict.fromkeys(node.operands)))

    def _compute_there(self, route: _Route, node: Node, emitter: Emitter) -> None:
        operands = [self._rows(route, v, emitter) if has_rows(v, route.rows) else v for v in node.operands]
        results = on_rows(node, operands, route.rows, route.bound)
        self._routed.update({(id(route), old): new for old, new in zip(node.values, results, strict=True)})

    def _there(self, route: _Route, value: Value, emitter: Emitter) -> Value:
        """Send the rows of a value to the ranks of their experts."""
        source, order = self._rows_to_send(route, value, emitter)
        type_ = from_mlir(source.type)
        rest = type_.shape[1:]
        sent = emitter.op(_INDEX, source, [order], type=TensorType(type_.dtype, (prod(route.rows), *rest)))
        if not route.axes:
            return sent
        room = TensorType(type_.dtype, (route.bound, *rest))
        counts = route.sent, route.received
        came = emitter.op(ALL_TO_ALL_ROWS, sent, list(route.axes), route.bound, *counts, type=room)
        return emitter.op(_INDEX, came, [route.regroup], type=room)

    def _rows_to_send(self, route: _Route, value: Value, emitter: Emitter) -> tuple[Value, Value]:
        """A tensor and the rows of it to send, in order: of a token that stands there k times, the token's row."""
        type_ = from_mlir(value.type)
        rows, rest = prod(route.rows), type_.shape[len(route.rows) :]
        source = repeated(value)
        if source is None:
            return _reshaped(value, (rows, *rest), emitter), route.order
        tokens = prod(from_mlir(source.type).shape[: -len(rest)])
        divisor = rows // tokens
        token = emitter.op(
            "aten.div.Scalar_mode", route.order, divisor, type=from_mlir(route.order.type), rounding_mode="floor"
        )
        return _reshaped(source, (tokens, *rest), emitter), token

    def _back(self, route: _Route, product: Value, type_: TensorType, emitter: Emitter) -> Value:
        """Rows sorted by expert, brought back to the ranks and the order that they have in the model."""
        if route.axes:
            here = from_mlir(product.type)
            home = TensorType(here.dtype, (prod(route.rows), *here.shape[1:]))
            ungrouped = emitter.op(_INDEX, product, [route.ungroup], type=here)
            counts = route.received, route.sent
            product = emitter.op(ALL_TO_ALL_ROWS, ungrouped, list(route.axes), home.shape[0], *counts, type=home)
        back = _reshaped(emitter.like(_INDEX, product, [route.inverse]), type_.shape, emitter)
        return back if route.dropped is None else _zero_where(back, route.experts, route.dropped, emitter)


def _zero_where(rows: Value, experts: Value, none: int, emitter: Emitter) -> Value:
    """The rows, with zeros for those whose expert is `none`."""
    type_, shape = from_mlir(rows.type), from_mlir(experts.type).shape
    flags = TensorType(torch.bool, shape)
    is_dropped = emitter.op("aten.ge.Scalar", experts, none, type=flags)
    is_dropped = emitter.op("aten.unsqueeze.default", is_dropped, -1, type=TensorType(torch.bool, (*shape, 1)))
    return emitter.op("aten.masked_fill.Scalar", rows, is_dropped, 0, type=type_)


def _reshaped(value: Value, shape: tuple[int, ...], emitter: Emitter) -> Value:
    type_ = from_mlir(value.type)
    if type_.shape == shape:
        return value
    return emitter.op(_RESHAPE, value, list(shape), type=TensorType(type_.dtype, shape))


def _sorted(keys: Value, emitter: Emitter) -> tuple[Value, Value]:
    """The keys in order, and the place of each before; equal keys keep their order."""
    type_ = to_mlir(TensorType(_LONG, from_mlir(keys.type).shape))
    call = Call("aten.sort.stable", (keys,), {"stable": True})
    ordered, order = build(call, [type_, type_], emitter.loc)
    return ordered, order


def _inverse(order: Value, emitter: Emitter) -> Value:
    type_ = TensorType(_LONG, from_mlir(order.type).shape)
    places = emitter.op("aten.arange.default", type_.shape[0], type=type_)
    return emitter.op("aten.index_put.default", places, [order], places, type=type_)
