"""Write loops over experts that compute all rows as products of the chosen rows, before autograd.

Before                                              After (R rows, of which each chose k experts)
  %y0 = linear(%x, %up0), ..    (R, N)                %up = stack(%up0, %up1, ..)
  %s0 = mul(%y0, %weights0)                           %r = the rows of %x, k times, sorted by expert
  %s1 = add(%s0, mul(%y1, %weights1))                 %y = stretto::grouped_mm(%r, %up, %ends), ..
                                                      %s = the k results of a row times their weights, summed

Each expert computes the rows that chose it and no others, and `raise-experts` finds the products. A loop whose experts
mix rows, draw random numbers or change a tensor in place stays as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from ...ops.grouped_mm import GROUPED_MM
from .choice_masks import shape_of
from .expert_loops import ExpertLoop, expert_loops, private

aten = torch.ops.aten
_TUPLES = (aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default)
_ALONG: dict[Any, int] = {**dict.fromkeys(_TUPLES, 2), aten.slice.Tensor: 1, aten.narrow.default: 1}
"""Operations along a dim, and the position of the dim among their arguments."""
_CASTS = (aten.to.dtype, aten._to_copy.default)
_TRANSPOSES = (aten.t.default, aten.transpose.int, aten.numpy_T.default)
_PRODUCTS = (aten.matmul.default, aten.mm.default)


class _NotAlikeError(Exception):
    """Experts do not compute the same, or not each row alone."""


def with_grouped_experts(forward: fx.GraphModule) -> fx.GraphModule | None:
    """A copy of a forward with its loops over experts rewritten; None where it has none."""
    if not any(True for _ in expert_loops(forward.graph)):
        return None
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in forward.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.set_codegen(forward.graph._codegen)
    written = [_rewritten(loop) for loop in [*expert_loops(graph)]]
    return fx.GraphModule(forward, graph) if any(written) else None


def _rewritten(loop: ExpertLoop) -> bool:
    """Rewrite one loop in place; False where its experts are not alike."""
    graph, last = loop.end.graph, loop.end.prev
    try:
        with graph.inserting_before(loop.end):
            result = _Writer(loop).sum()
    except _NotAlikeError:
        while loop.end.prev is not last:
            graph.erase_node(loop.end.prev)
        return False
    loop.end.replace_all_uses_with(result)
    _erase(loop.end)
    return True


def _erase(node: fx.Node) -> None:
    """Erase a node, and those that nothing else reads."""
    left = [node]
    while left:
        each = left.pop()
        if not each.users and each.op == "call_function" and not each._erased:
            operands = each.all_input_nodes
            each.graph.erase_node(each)
            left += operands


@dataclass(frozen=True)
class _Rows:
    """A value of the rows, sorted by expert (k R, N), or a tuple of such."""

    node: fx.Node


@dataclass(frozen=True)
class _Table:
    """A tensor (E, ..) of all experts' own."""

    node: fx.Node


@dataclass
class _Writer:
    """Writes the results of a loop's experts before its end."""

    loop: ExpertLoop
    _written: dict[fx.Node, Any] = field(default_factory=dict)
    """By node of the first expert."""

    def __post_init__(self) -> None:
        self._own = [private(result) for result in self.loop.results]
        count, total = len(self.loop.results), prod(self.loop.rows)
        self._times = prod(shape_of(self.loop.chosen)) // total
        self._experts = self._op(aten.reshape.default, self.loop.chosen, [-1])
        ordered = self._op(aten.sort.default, self._experts)
        self._ordered, self._order = (self._op(operator.getitem, ordered, index) for index in (0, 1))
        numbers = self._op(aten.arange.default, count)
        column = self._op(aten.unsqueeze.default, self._experts, 1)
        each = self._op(aten.sum.dim_IntList, self._op(aten.eq.Tensor, column, numbers), [0])
        self._ends = self._op(aten.to.dtype, self._op(aten.cumsum.default, each, 0), torch.int32)

    def sum(self) -> fx.Node:
        """The sum of the chosen experts' results, times their factors, and of what else the loop adds."""
        loop = self.loop
        out = self._value(loop.results)
        if not isinstance(out, _Rows):
            raise _NotAlikeError
        width, total = shape_of(loop.results[0])[-1], prod(loop.rows)
        inverse = self._op(aten.argsort.default, self._order)
        back = self._op(aten.index.Tensor, out.node, [inverse])
        each = self._op(aten.reshape.default, back, [total, self._times, width])
        factors = [self._op(aten.reshape.default, self._product(own), [total, 1]) for own in loop.factors]
        table = self._op(aten.cat.default, factors, -1)
        chosen = self._op(aten.reshape.default, self._experts, [total, self._times])
        weights = self._op(aten.unsqueeze.default, self._op(aten.gather.default, table, -1, chosen), -1)
        summed = self._op(aten.sum.dim_IntList, self._op(aten.mul.Tensor, each, weights), [1])
        result = self._op(aten.reshape.default, summed, [*loop.rows, width])
        for other in loop.rest:
            result = self._op(aten.add.Tensor, other, result)
        dtype = loop.end.meta["val"].dtype
        return result if result.meta["val"].dtype == dtype else self._op(aten.to.dtype, result, dtype)

    def _product(self, factors: Sequence[fx.Node]) -> fx.Node:
        product, *others = factors
        for other in others:
            product = self._op(aten.mul.Tensor, product, other)
        return product

    def _value(self, nodes: Sequence[fx.Node]) -> Any:
        """What the experts' nodes are for the chosen rows: rows, a table, or what all share."""
        first = nodes[0]
        if first not in self._written:
            self._written[first] = self._new_value(nodes)
        return self._written[first]

    def _new_value(self, nodes: Sequence[fx.Node]) -> Any:
        first = nodes[0]
        if all(node is first for node in nodes):
            return self._shared(first)
        if len({*nodes}) < len(nodes) or any(n not in own for n, own in zip(nodes, self._own, strict=True)):
            raise _NotAlikeError
        if len({(node.op, shape_of(node), _dtype(node)) for node in nodes}) > 1:
            raise _NotAlikeError
        if first.op == "get_attr":
            return _Table(self._op(aten.stack.default, [*nodes]))
        if len({node.target for node in nodes}) > 1 or len({len(node.args) for node in nodes}) > 1:
            raise _NotAlikeError
        args = self._zipped([node.args for node in nodes])
        kwargs = self._zipped([node.kwargs for node in nodes])
        return self._call(first, args, kwargs)

    def _zipped(self, arguments: Sequence[Any]) -> Any:
        first = arguments[0]
        if any(type(each) is not type(first) for each in arguments):
            raise _NotAlikeError
        if isinstance(first, fx.Node):
            return self._value(arguments)
        if isinstance(first, (list, tuple)) and len({len(each) for each in arguments}) == 1:
            return [self._zipped(items) for items in zip(*arguments, strict=True)]
        if isinstance(first, dict) and all([*each] == [*first] for each in arguments):
            return {key: self._zipped([each[key] for each in arguments]) for key in first}
        if any(each != first for each in arguments):
            raise _NotAlikeError
        return first

    def _shared(self, node: fx.Node) -> Any:
        """What all experts read: rows, or a number."""
        shape = shape_of(node)
        if shape[:-1] != self.loop.rows:
            if shape:
                raise _NotAlikeError
            return node
        flat = self._op(aten.reshape.default, node, [-1, shape[-1]])
        index = self._order
        if self._times > 1:
            column = self._op(aten.unsqueeze.default, flat, 1)
            copies = self._op(aten.expand.default, column, [-1, self._times, -1])
            flat = self._op(aten.reshape.default, copies, [-1, shape[-1]])
        return _Rows(self._op(aten.index.Tensor, flat, [index]))

    def _call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """An operation of the experts on all their rows."""
        target = node.target
        if target is operator.getitem and isinstance(args[0], _Rows):
            return _Rows(self._op(target, args[0].node, args[1]))
        if target is aten.linear.default and isinstance(args[0], _Rows):
            rows, weight, bias = (*args, None)[:3]
            return self._product_of(rows, self._transposed(weight), bias)
        if target in _PRODUCTS and isinstance(args[0], _Rows) and isinstance(args[1], _Table):
            return self._product_of(args[0], args[1], None)
        if target in _TRANSPOSES and isinstance(args[0], _Table):
            return self._transposed(args[0])
        if target in _ALONG and isinstance(args[0], _Rows):
            return self._along_features(node, args)
        if target is aten.dropout.default and args[2] is False:
            return args[0]
        if target in _CASTS or (isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags):
            return self._elementwise(node, args, kwargs)
        raise _NotAlikeError

    def _product_of(self, rows: _Rows, matrices: Any, bias: Any) -> _Rows:
        """Rows times the matrix (in, out) of their expert, and its bias."""
        if not isinstance(matrices, _Table) or len(shape_of(matrices.node)) != 3:
            raise _NotAlikeError
        product = self._op(GROUPED_MM, rows.node, matrices.node, self._ends)
        if bias is None:
            return _Rows(product)
        if not isinstance(bias, _Table):
            raise _NotAlikeError
        return _Rows(self._op(aten.add.Tensor, product, self._of_rows(bias, 1)))

    def _transposed(self, matrices: Any) -> _Table:
        if not isinstance(matrices, _Table) or len(shape_of(matrices.node)) != 3:
            raise _NotAlikeError
        return _Table(self._op(aten.transpose.int, matrices.node, 1, 2))

    def _along_features(self, node: fx.Node, args: list[Any]) -> _Rows:
        """A part of the rows' last dim, which is dim 1 here."""
        position = _ALONG[node.target]
        (operand,) = (each for each in node.all_input_nodes)
        last = len(shape_of(operand)) - 1
        if len(args) <= position or args[position] not in (-1, last):
            raise _NotAlikeError
        here = [args[0].node, *args[1:]]
        here[position] = 1
        return _Rows(self._op(node.target, *here))

    def _elementwise(self, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """An operation on each element; the tables are those of each row's expert, where it has rows."""
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            raise _NotAlikeError
        values = [*args, *kwargs.values()]
        if any(isinstance(each, list) for each in values):
            raise _NotAlikeError
        has_rows = any(isinstance(each, _Rows) for each in values)
        ranks = {len(shape_of(each.node)) for each in values if isinstance(each, _Table)}
        if not has_rows and len(ranks) != 1:
            raise _NotAlikeError

        def operand(value: Any) -> Any:
            if isinstance(value, _Table) and has_rows:
                return self._of_rows(value, 1)
            return value.node if isinstance(value, (_Rows, _Table)) else value

        result = self._op(
            node.target, *(operand(each) for each in args), **{key: operand(each) for key, each in kwargs.items()}
        )
        if has_rows and shape_of(result)[1:] != shape_of(node)[-1:]:
            raise _NotAlikeError
        return _Rows(result) if has_rows else _Table(result)

    def _of_rows(self, table: _Table, rank: int) -> fx.Node:
        """The entry (..) of a table for the expert of each sorted row."""
        if len(shape_of(table.node)) != rank + 1:
            raise _NotAlikeError
        return self._op(aten.index.Tensor, table.node, [self._ordered])

    def _op(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A new node before the loop's end, at whose line it stands."""
        end = self.loop.end
        node = end.graph.call_function(target, args, kwargs)
        node.meta = {key: value for key, value in end.meta.items() if key != "val"}

        def value_of(operand: fx.Node) -> Any:
            return operand.meta["val"]

        with torch.no_grad(), end.meta["val"].fake_mode:
            node.meta["val"] = target(*fx.map_arg(args, value_of), **fx.map_arg(kwargs, value_of))
        return node


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else None
