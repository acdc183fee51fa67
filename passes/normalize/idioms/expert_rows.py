"""Rows that a model sorts by expert, as rows in the order of its tokens.

A model that calls a product in groups sorts the rows of its tokens by expert (`%rows = x[order // k]`), computes on
the sorted rows, and puts them back (`%y[inverse]`). What it computes there takes each row alone. So the same
operations on rows in the order of tokens give the same rows, each where its token is: the *twin* of a sorted value.
`SortedRows` builds twins from the sort on, in order, and replaces what leaves the sorted order.

Which values are an order, its inverse, or the ends of groups is found by computing them for a few random choices of
experts, so that any spelling is recognised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ....ir.bindings import Operation, Value, mlir
from ....ir.dialects.context import context
from ....ir.interpreter.evaluate import operator
from ....ir.operations import build, flatten, regroup
from ....ir.types import TensorType, from_mlir
from ...graph import Graph, Node
from ...rewriting import Emitter, producer
from ...row_operations import constants, has_rows, is_known, takes_rows_alone

LINEAR, OUTER = "nn.expert_linear", "nn.expert_outer_products"
GROUPED, GROUPED_BACKWARD = "stretto.grouped_mm.default", "stretto.grouped_mm_backward.default"
SORTS = ("aten.sort.default", "aten.sort.stable")
_TRANSPOSE = "aten.transpose.int"
_INDEX, _PUT = "aten.index.Tensor", "aten.index_put.default"
_ZEROS = ("aten.new_zeros.default", "aten.zeros.default", "aten.zeros_like.default")
_SHAPE_ONLY = ("aten.new_zeros.default", "aten.new_empty.default", "aten.zeros_like.default", "aten.empty_like.default")
"""Operations that read no element of their operand."""
_RESHAPES = ("aten.reshape.default", "aten.view.default")
_CHOICES = ("aten.topk.default", "aten.argmax.default", "aten.sort.default", "aten.sort.stable")
_KEEP_VALUES = (
    *_RESHAPES,
    "aten._to_copy.default",
    "aten.expand.default",
    "aten.squeeze.dim",
    "aten.unsqueeze.default",
)
_SAMPLES = 2


def expert_count(graph: Graph, experts: Value) -> int | None:
    """How many experts a router chose from, if these are indices of its largest scores; None for other numbers."""
    while (node := graph.maker.get(experts)) is not None and node.name in _KEEP_VALUES:
        experts = node.operands[0]
    if node is None or node.name not in _CHOICES or experts != node.values[-1] or node.call is None:
        return None
    dim = constants(node.call).get("dim")
    return from_mlir(node.operands[0].type).shape[dim] if isinstance(dim, int) else None


@dataclass
class SortedRows:
    """The rows that one sort of experts orders, with their twins."""

    graph: Graph
    sort: Node
    count: int
    """The number of experts."""
    twins: dict[Value, Value] = field(default_factory=dict)
    raised: list[Node] = field(default_factory=list)
    """The products that got a twin."""
    _samples: list[dict[Value, Any]] = field(default_factory=list)
    _inverses: set[Value] = field(default_factory=set)
    """Where each row is sorted to: the inverse of the order."""
    _left: list[tuple[Operation, int, Value]] = field(default_factory=list)
    """Operands that were replaced: the operation, the operand's number, and what it was."""
    _numbers: dict[Value, Tensor] = field(default_factory=dict)
    """The elements of twins that depend on no input."""

    @property
    def experts(self) -> Value:
        """The expert of each row, in the order of tokens."""
        return self.sort.operands[0]

    @property
    def order(self) -> Value:
        """The row that each sorted row was."""
        return self.sort.values[1]

    @property
    def rows(self) -> int:
        """The number of rows."""
        return from_mlir(self.experts.type).shape[0]

    def rewrite(self) -> None:
        """Build the twins of all sorted values, and replace what leaves the sorted order."""
        self._evaluate()
        self.twins[self.sort.values[0]] = self.experts
        self._inverses = {v for v in self._samples[0] if self._is(v, _inverse)}
        for node in self.graph.nodes[self.graph.nodes.index(self.sort) + 1 :]:
            if node.call is not None and any(map(self._is_sorted, node.operands)):
                with context(), mlir.InsertionPoint(node.op):
                    self._visit(node, Emitter(node.op.location))

    def undo(self) -> None:
        """Leave everything as it was; the twins are unused then."""
        for op, position, old in reversed(self._left):
            op.operands[position] = old
        self.raised.clear()

    def _visit(self, node: Node, emitter: Emitter) -> None:
        match node.name:
            case name if name == _INDEX:
                self._index(node, emitter)
            case name if name == _PUT:
                self._put(node, emitter)
            case name if name == GROUPED:
                self._grouped(node, emitter)
            case name if name == GROUPED_BACKWARD:
                self._grouped_backward(node, emitter)
            case name if name in _SHAPE_ONLY and node.operands[0] in self.twins:
                self._leave(node, self._like(node, [self.twins.get(v, v) for v in node.operands]))
            case _ if self._takes_rows_alone(node):
                operands = [self._twin(v, emitter) for v in node.operands]
                self._pair(node, self._like(node, operands))
                self._compute(node)

    def _index(self, node: Node, emitter: Emitter) -> None:
        assert node.call is not None
        source, indices = node.call.args
        index = indices[0]
        if len(indices) != 1 or index is None:
            return
        if source in self.twins:
            if index in self._inverses:
                self._leave(node, [self.twins[source]])
        elif index == self.order and has_rows(source, (self.rows,)):
            self._pair(node, [source])
        elif (twin := self._index_twin(index, emitter)) is not None:
            type_ = from_mlir(node.values[0].type)
            repeats = self._repeats(twin, source)
            if repeats:
                self._pair(node, [_repeated(source, repeats, type_, emitter)])
            else:
                self._pair(node, [emitter.op(_INDEX, source, [twin], type=type_)])

    def _put(self, node: Node, emitter: Emitter) -> None:
        assert node.call is not None
        base, indices, value, *rest = node.call.args
        index = indices[0]
        if len(indices) != 1 or index is None or from_mlir(value.type).shape[:1] != (self.rows,):
            return
        made = self.graph.maker.get(base)
        is_zero = made is not None and made.name in _ZEROS
        adds = bool(rest and rest[0])
        if value in self.twins:
            whole = has_rows(base, (self.rows,)) and (is_zero or not adds)
            if index == self.order and whole:
                self._leave(node, [self.twins[value]])
            elif index != self.order and adds and is_zero:
                self._put_twin(node, index, emitter)
        elif index in self._inverses and has_rows(base, (self.rows,)) and (is_zero or not adds):
            self._pair(node, [value])

    def _put_twin(self, node: Node, index: Value, emitter: Emitter) -> None:
        """A sum of sorted rows into rows of tokens: of the twins, in the order of tokens."""
        assert node.call is not None
        twin = self._index_twin(index, emitter)
        if twin is None:
            return
        base, _, value, *_ = node.call.args
        type_ = from_mlir(node.values[0].type)
        repeats = self._repeats(twin, base)
        if repeats:
            apart = TensorType(type_.dtype, (type_.shape[0], repeats, *type_.shape[1:]))
            rows = emitter.op("aten.reshape.default", self.twins[value], list(apart.shape), type=apart)
            self._leave(node, [emitter.op("aten.sum.dim_IntList", rows, [1], type=type_)])
        else:
            self._leave(node, [emitter.op(_PUT, base, [twin], self.twins[value], True, type=type_)])

    def _grouped(self, node: Node, emitter: Emitter) -> None:
        rows, weight, ends = node.operands
        if rows in self.twins and self._is(ends, _ends):
            twin = emitter.op(LINEAR, self.twins[rows], weight, self.experts, type=from_mlir(node.values[0].type))
            self._pair(node, [twin])
            self.raised.append(node)

    def _grouped_backward(self, node: Node, emitter: Emitter) -> None:
        rows, weight, ends, grad = node.operands
        if rows not in self.twins or grad not in self.twins or not self._is(ends, _ends):
            return
        rows_type, weight_type = (from_mlir(v.type) for v in node.values)
        count, inner, outer = weight_type.shape
        across = TensorType(weight_type.dtype, (count, outer, inner))
        turned = transposed(weight, across, emitter)
        twin = emitter.op(LINEAR, self.twins[grad], turned, self.experts, type=rows_type)
        self.twins[node.values[0]] = twin
        operands = (self.twins[rows], self.twins[grad], self.experts, weight)
        self._leave_value(node.values[1], emitter.op(OUTER, *operands, type=weight_type))
        self.raised.append(node)

    def _takes_rows_alone(self, node: Node) -> bool:
        """Whether each sorted row of an operation is a function of one sorted row of its operands."""
        rows = (self.rows,)
        mixes = any(has_rows(v, rows) and v not in self.twins and v != self.order for v in node.operands)
        return takes_rows_alone(node, rows) and not mixes

    def _twin(self, value: Value, emitter: Emitter) -> Value:
        """The twin of an operand; a value that has no rows is its own."""
        return self._positions(emitter) if value == self.order else self.twins.get(value, value)

    def _positions(self, emitter: Emitter) -> Value:
        """The twin of the order: the numbers of the rows."""
        type_ = from_mlir(self.order.type)
        positions = emitter.op("aten.arange.default", self.rows, type=TensorType(type_.dtype, type_.shape))
        self._numbers[positions] = torch.arange(self.rows)
        return positions

    def _index_twin(self, index: Value, emitter: Emitter) -> Value | None:
        if from_mlir(index.type).shape != (self.rows,):
            return None
        return self._positions(emitter) if index == self.order else self.twins.get(index)

    def _repeats(self, index: Value, source: Value) -> int:
        """How often each row of a source stands in a row, if that is what an index of it does; else 0."""
        numbers, rows = self._numbers.get(index), from_mlir(source.type).shape[0]
        if numbers is None or rows == 0 or self.rows % rows:
            return 0
        times = self.rows // rows
        return times if torch.equal(numbers, torch.arange(rows).repeat_interleave(times)) else 0

    def _like(self, node: Node, operands: Sequence[Value]) -> list[Any]:
        assert node.call is not None
        types = regroup(node.results, [v.type for v in node.values])
        return flatten(build(node.call.replace_values(operands), types, node.op.location))

    def _pair(self, node: Node, twins: Sequence[Value]) -> None:
        self.twins.update(zip(node.values, twins, strict=True))

    def _leave(self, node: Node, values: Sequence[Value]) -> None:
        for old, new in zip(node.values, values, strict=True):
            self._leave_value(old, new)

    def _leave_value(self, old: Value, new: Value) -> None:
        """Replace a value that is not sorted; later nodes were read before, so they get it as their operand here."""
        self._left += [(use.owner, use.operand_number, old) for use in old.uses]
        old.replace_all_uses_with(new)
        made = self.graph.maker[old]
        self.graph.maker[new] = made
        for user in self.graph.users.get(old, []):
            user.operands = [new if v == old else v for v in user.operands]
            if user.call is not None:
                user.call = user.call.replace_values(user.operands)
        self.graph.users.setdefault(new, []).extend(self.graph.users.get(old, []))

    def _compute(self, node: Node) -> None:
        """Learn the elements of a twin that depends on no input."""
        values: dict[Value, Any] = {self.order: torch.arange(self.rows)}
        for value in node.operands:
            made = self.graph.maker.get(value)
            if self.twins.get(value) in self._numbers:
                values[value] = self._numbers[self.twins[value]]
            elif made is not None and not made.operands and made.call is not None:
                values[value] = _run(made, {})
        if len(node.values) == 1 and all(v in values for v in node.operands):
            self._numbers[self.twins[node.values[0]]] = _run(node, values)

    def _is_sorted(self, value: Value) -> bool:
        """Whether a value has sorted rows, or says where a row is sorted to."""
        return value in self.twins or value == self.order or value in self._inverses

    def _evaluate(self) -> None:
        """What follows from the experts alone, for a few random choices of them."""
        cone = self._follows_from_experts()
        for seed in range(_SAMPLES):
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randint(0, self.count - seed if self.count > seed else 1, (self.rows,), generator=generator)
            values: dict[Value, Any] = {self.experts: drawn}
            for node in cone:
                results = _run(node, values)
                items = [*results] if isinstance(results, (tuple, list)) else [results]
                values.update(zip(node.values, items, strict=False))
            self._samples.append(values)

    def _follows_from_experts(self) -> list[Node]:
        """The nodes that depend on the experts and on constants of few elements alone, in order."""
        known, cone = {self.experts}, []
        shapes = ((), (self.rows,), (self.count,))
        for node in self.graph.nodes:
            if node.call is None or any(v not in known for v in node.operands) or not is_known(node.name):
                continue
            if node.operands or all(from_mlir(v.type).shape in shapes for v in node.values):
                cone.append(node)
                known.update(node.values)
        return cone

    def _is(self, value: Value, wanted: Any) -> bool:
        """Whether a value is, for every sample, what `wanted` computes of the experts and their order."""
        for sample in self._samples:
            found = sample.get(value)
            expected = wanted(sample[self.experts], sample[self.order], self.count)
            if (
                not isinstance(found, Tensor)
                or found.shape != expected.shape
                or not torch.equal(found.long(), expected)
            ):
                return False
        return True


def _inverse(experts: Tensor, order: Tensor, count: int) -> Tensor:
    return torch.argsort(order)


def _ends(experts: Tensor, order: Tensor, count: int) -> Tensor:
    return torch.tensor([*accumulate(torch.bincount(experts, minlength=count).tolist())])


def _run(node: Node, values: Mapping[Value, Any]) -> Any:
    assert node.call is not None

    def fill(argument: Any) -> Any:
        if isinstance(argument, mlir.Value):
            return values[argument]
        return [fill(a) for a in argument] if isinstance(argument, (list, tuple)) else argument

    kwargs = {key: fill(a) for key, a in node.call.kwargs.items()}
    return operator(node.name)(*(fill(a) for a in node.call.args), **kwargs)


def transposed(matrices: Value, type_: TensorType, emitter: Emitter) -> Value:
    """Matrices (E, K, N) as (E, N, K); what was transposed already is taken from before."""
    made = producer(matrices)
    if made is not None and made.name == _TRANSPOSE and {int(d) % 3 for d in made.args[1:]} == {1, 2}:
        before: Value = made.args[0]
        return before
    return emitter.op(_TRANSPOSE, matrices, 1, 2, type=type_)


def _repeated(source: Value, times: int, type_: TensorType, emitter: Emitter) -> Value:
    """Each row `times` in a row."""
    rows, *rest = from_mlir(source.type).shape
    if times == 1:
        return source
    column = emitter.op("aten.unsqueeze.default", source, 1, type=TensorType(type_.dtype, (rows, 1, *rest)))
    apart = TensorType(type_.dtype, (rows, times, *rest))
    expanded = emitter.op("aten.expand.default", column, list(apart.shape), type=apart)
    return emitter.op("aten.reshape.default", expanded, list(type_.shape), type=type_)
