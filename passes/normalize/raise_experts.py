"""Write the products of experts as products of rows with their expert's matrix, rows in the order of tokens.

Before (S rows, of which the first k are a token's)      After
  %s, %order = aten.sort %experts                          %rows = each row of %x k times
  %rows = aten.index %x, [%order // k]                     %y = nn.expert_linear %rows, %w, %experts
  %y = stretto.grouped_mm %rows, %w, %ends
  %back = aten.index %y, [%inverse of %order]              (%back is %y)

Before                                                   After
  %chosen = aten.index %w, [%experts]    (S, K, N)         %y = nn.expert_linear %x, %w, %experts
  %y = aten.bmm %x, %chosen

A sort mixes the rows of all ranks, and chosen weights are a matrix for each row. A product by expert does neither: it
may be cut by rows, which then stay where their tokens are, and by experts. Forward and backward are found by dataflow
(`idioms/expert_rows.py`). Only experts that a router chose as its largest scores are taken, because other numbers may
be none of an expert.

Needs: level `aten`, forward and backward in one function.   Keeps: values (up to the order of sums).
Source: token-choice routing, GShard (arXiv:2006.16668) and MegaBlocks (arXiv:2211.15841), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...ir.bindings import Operation, Value, mlir
from ...ir.dialects.context import context
from ...ir.dialects.schemas import by_mlir_name
from ...ir.locations import from_location
from ...ir.module import Level, Module, operations
from ...ir.operations import Call, is_packing, read
from ...ir.types import TensorType, from_mlir
from ..base import Pass, Report
from ..counted_remarks import CountedRemarks
from ..graph import Graph, Node
from ..rewriting import Emitter, erase_unused, producer, site_weights, users
from .idioms.expert_rows import LINEAR, OUTER, SORTS, SortedRows, expert_count, transposed

_BMM, _INDEX, _PUT, _TRANSPOSE = "aten.bmm.default", "aten.index.Tensor", "aten.index_put.default", "aten.transpose.int"
_SQUEEZE, _UNSQUEEZE = "aten.squeeze.dim", "aten.unsqueeze.default"
_ZEROS = ("aten.new_zeros.default", "aten.zeros.default")


@dataclass(frozen=True)
class RaiseExperts(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "raise-experts"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})
    joins_layers: ClassVar[bool] = True

    def run(self, module: Module) -> Report:
        weights, remarks, count = site_weights(module), CountedRemarks(self.name), 0
        for name, function in module.functions().items():
            raised = [*_raise_sorted(function), *_raise_chosen(function)]
            raised += _raise_biases(function)
            count += len(raised) * weights[name]
            for op in raised:
                message = "product of rows with their expert's matrix, in the order of tokens"
                remarks.applied(message, from_location(op.location), weights[name])
            erase_unused(function)
        return Report(count, remarks.remarks())


def _raise_sorted(function: Operation) -> list[Operation]:
    """Raise products in groups of rows that are sorted by expert."""
    graph, raised = Graph.of(function), list[Operation]()
    for node in graph.nodes:
        if node.name not in SORTS or len(from_mlir(node.operands[0].type).shape) != 1:
            continue
        count = expert_count(graph, node.operands[0])
        if count is not None:
            rows = SortedRows(graph, node, count)
            rows.rewrite()
            live = _live(function)
            if any(value in live for product in rows.raised for value in product.values):
                rows.undo()  # something takes sorted rows in a way that is not known: they would be computed twice
            raised += [product.op for product in rows.raised]
    return raised


def _live(function: Operation) -> set[Value]:
    """The values on which results and effects of a function depend."""
    live: set[Value] = set()
    *body, end = operations(function)
    live.update(end.operands)
    for op in reversed(body):
        definition = by_mlir_name().get(op.operation.name)
        is_pure = is_packing(op) or (definition is not None and definition.pure)
        if not is_pure or any(result in live for result in op.results):
            live.update(op.operands)
    return live


@dataclass(frozen=True)
class _Chosen:
    """A matrix for each row, chosen from those of all experts."""

    weight: Value
    experts: Value
    is_transposed: bool = False

    def matrices(self, emitter: Emitter) -> Value:
        """All experts' matrices, transposed as the chosen ones are."""
        return _transposed(self.weight, emitter) if self.is_transposed else self.weight


def _raise_chosen(function: Operation) -> list[Operation]:
    """Raise products of rows with a matrix that is chosen for each row, and the sums that are their gradients."""
    graph, raised = Graph.of(function), list[Operation]()
    chosen: dict[Value, _Chosen] = {}
    for node in graph.nodes:
        if node.name == _INDEX:
            found = _choice(graph, node)
            if found is not None:
                chosen[node.values[0]] = found
        elif node.name == _TRANSPOSE and node.operands[0] in chosen and _swaps_last(node.call):
            before = chosen[node.operands[0]]
            chosen[node.values[0]] = _Chosen(before.weight, before.experts, not before.is_transposed)
        elif node.name in (_BMM, _PUT):
            with context(), mlir.InsertionPoint(node.op):
                emitter = Emitter(node.op.location)
                product = _product(node, chosen, emitter) if node.name == _BMM else _sum(graph, node, chosen, emitter)
            if product is not None:
                node.values[0].replace_all_uses_with(product)
                raised.append(node.op)
    return raised


def _raise_biases(function: Operation) -> list[Operation]:
    """Raise rows of a matrix that experts of products choose, such as biases: a product with a column of ones.

    So a bias goes where its expert is, as a weight does.
    """
    graph, raised = Graph.of(function), list[Operation]()
    experts = {node.operands[2]: None for node in graph.nodes if node.name == LINEAR}
    chosen: dict[tuple[Value, tuple[int, ...]], Value] = {}
    for node in graph.nodes:
        if node.name not in (_INDEX, _PUT) or node.call is None:
            continue
        source, indices, *rest = node.call.args
        shape, rows = from_mlir(source.type).shape, indices[0]
        if len(indices) != 1 or rows not in experts or len(shape) != 2 or expert_count(graph, rows) != shape[0]:
            continue
        with context(), mlir.InsertionPoint(node.op):
            emitter = Emitter(node.op.location)
            if node.name == _INDEX and from_mlir(source.type).dtype.is_floating_point:
                chosen[rows, shape] = source
                value = _bias(source, rows, emitter)
            elif node.name == _PUT and rest[1:] == [True] and (rows, shape) in chosen and _is_zero(graph, source):
                value = _bias_sum(chosen[rows, shape], rest[0], rows, emitter)
            else:
                continue
        node.values[0].replace_all_uses_with(value)
        raised.append(node.op)
    return raised


def _bias(bias: Value, experts: Value, emitter: Emitter) -> Value:
    """bias (E, N), experts (S) -> (S, N)."""
    type_, rows = from_mlir(bias.type), from_mlir(experts.type).shape
    result = TensorType(type_.dtype, (*rows, type_.shape[1]))
    return emitter.op(LINEAR, _ones(rows, type_, emitter), _as_matrices(bias, emitter), experts, type=result)


def _bias_sum(bias: Value, rows: Value, experts: Value, emitter: Emitter) -> Value:
    """The gradient of a bias (E, N): the sum of each expert's rows (S, N)."""
    shape = from_mlir(bias.type).shape
    type_ = TensorType(from_mlir(rows.type).dtype, shape)
    count, width = shape
    ones, matrices = _ones(from_mlir(experts.type).shape, type_, emitter), _as_matrices(bias, emitter)
    summed = emitter.op(OUTER, ones, rows, experts, matrices, type=TensorType(type_.dtype, (count, 1, width)))
    return emitter.op(_SQUEEZE, summed, 1, type=type_)


def _ones(rows: tuple[int, ...], like: TensorType, emitter: Emitter) -> Value:
    type_ = TensorType(like.dtype, (*rows, 1))
    return emitter.op("aten.full.default", list(type_.shape), 1.0, type=type_, dtype=like.dtype)


def _as_matrices(bias: Value, emitter: Emitter) -> Value:
    type_ = from_mlir(bias.type)
    count, width = type_.shape
    return emitter.op(_UNSQUEEZE, bias, 1, type=TensorType(type_.dtype, (count, 1, width)))


def _is_zero(graph: Graph, value: Value) -> bool:
    made = graph.maker.get(value)
    return made is not None and made.name in _ZEROS


def _choice(graph: Graph, node: Node) -> _Chosen | None:
    """The matrices of experts that an index chooses for each row."""
    assert node.call is not None
    weight, indices = node.call.args
    if len(indices) != 1 or indices[0] is None:
        return None
    shape, experts = from_mlir(weight.type).shape, indices[0]
    is_matrix_of_each = len(shape) == 3 and len(from_mlir(experts.type).shape) == 1
    count = expert_count(graph, experts) if is_matrix_of_each else None
    return _Chosen(weight, experts) if count is not None and count <= shape[0] else None


def _product(node: Node, chosen: dict[Value, _Chosen], emitter: Emitter) -> Value | None:
    """A row times its matrix (S, 1, K) (S, K, N), or a matrix times its column (S, N, K) (S, K, 1)."""
    left, right = node.operands
    type_ = from_mlir(node.values[0].type)
    if right in chosen and type_.shape[1] == 1:
        rows, choice, dim, matrices = left, chosen[right], 1, chosen[right].matrices(emitter)
    elif left in chosen and type_.shape[2] == 1:
        rows, choice, dim = right, chosen[left], 2
        matrices = _Chosen(choice.weight, choice.experts, not choice.is_transposed).matrices(emitter)
    else:
        return None
    wide = type_.shape[2] if dim == 1 else type_.shape[1]
    flat = _without(rows, dim, emitter)
    out = emitter.op(LINEAR, flat, matrices, choice.experts, type=TensorType(type_.dtype, (type_.shape[0], wide)))
    for user in users(node.values[0]):
        call = read(user)
        if call is not None and call.name == _SQUEEZE and user.results[0].type == out.type:
            user.results[0].replace_all_uses_with(out)
    return emitter.op(_UNSQUEEZE, out, dim, type=type_)


def _sum(graph: Graph, node: Node, chosen: dict[Value, _Chosen], emitter: Emitter) -> Value | None:
    """Outer products (S, M, 1) (S, 1, N), added to zeros (E, M, N) at each row's expert."""
    assert node.call is not None
    base, indices, value, *rest = node.call.args
    product = graph.maker.get(value)
    if not _is_zero(graph, base) or product is None or product.name != _BMM or rest != [True]:
        return None
    weights = [each.weight for each in chosen.values() if [each.experts] == indices]
    weight = next((w for w in weights if from_mlir(w.type).shape == from_mlir(base.type).shape), None)
    if weight is None:
        return None
    left, right = product.operands
    if from_mlir(left.type).shape[2] != 1:
        return None
    type_ = from_mlir(node.values[0].type)
    operands = (_without(left, 2, emitter), _without(right, 1, emitter), indices[0], weight)
    return emitter.op(OUTER, *operands, type=type_)


def _without(value: Value, dim: int, emitter: Emitter) -> Value:
    """A tensor (S, 1, N) or (S, N, 1) without its dim of one element."""
    type_ = from_mlir(value.type)
    shape = tuple(extent for d, extent in enumerate(type_.shape) if d != dim)
    made = producer(value)
    while made is not None and made.name == _TRANSPOSE and _swaps_last(made):  # of a column, or of a row
        value = made.args[0]
        made = producer(value)
    if made is not None and made.name == _UNSQUEEZE and from_mlir(made.args[0].type).shape == shape:
        return made.args[0]
    dim = from_mlir(value.type).shape.index(1, 1)
    return emitter.op(_SQUEEZE, value, dim, type=TensorType(type_.dtype, shape))


def _swaps_last(call: Call | None) -> bool:
    return call is not None and {int(d) % 3 for d in call.args[1:]} == {1, 2}


def _transposed(value: Value, emitter: Emitter) -> Value:
    type_ = from_mlir(value.type)
    count, rows, columns = type_.shape
    return transposed(value, TensorType(type_.dtype, (count, columns, rows)), emitter)
