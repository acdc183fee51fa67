"""Split a stage's backward in two: the gradient of the stage's input (B), and gradients of weights (W).

B is the backward slice of the gradients that the stage sends to earlier stages. In a stage that sends none, B is the
chain on which its layers' gradients depend: operations that at least two gradients need. A call of a function that
computes both is split into two functions, an operation with an output mask into two operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...ir.bindings import Operation, Value, mlir
from ...ir.dialects.context import context
from ...ir.locations import from_location
from ...ir.module import Module, build_call, build_function, entry, finish_function, operations, terminator
from ...ir.operations import Call, build, read
from ...ir.types import absent
from ..counted_remarks import CountedRemarks
from ..graph import Graph, Node, copy_node
from .attributes import copy_marks
from .microbatch_analysis import MicrobatchAnalysis

_MASKED = (
    "aten.convolution_backward.default",
    "aten.native_layer_norm_backward.default",
    "aten.native_group_norm_backward.default",
)
"""Operations whose last argument is an output mask, with the gradient of the input first."""


def split_masked(module: Module, remarks: CountedRemarks) -> None:
    """Split every operation with an output mask that computes input and weight gradients."""
    for function in module.functions().values():
        for op in list(operations(function))[:-1]:
            call = read(op)
            if call is not None and call.name in _MASKED and call.args[-1][0] and any(call.args[-1][1:]):
                origin = from_location(op.location)
                _split_op(op, call)
                remarks.applied(f'"{call.name}" became one for the input and one for the weights', origin)


def _split_op(op: Operation, call: Call) -> None:
    types = [r.type for r in op.results]
    absent_types = [absent() for _ in types]
    with context(), mlir.InsertionPoint(op):
        mask, result_types = [True, False, False], [types[0], *absent_types[1:]]
        first = build(Call(call.name, (*call.args[:-1], mask)), result_types, op.location)
        mask, result_types = [False, *call.args[-1][1:]], [absent_types[0], *types[1:]]
        second = build(Call(call.name, (*call.args[:-1], mask)), result_types, op.location)
    for old, new in zip(op.results, [first[0], *second[1:]], strict=True):
        old.replace_all_uses_with(new)
    for new_op in (first[0].owner, second[0].owner):
        copy_marks(op, new_op)
    op.operation.erase()


@dataclass(frozen=True)
class InputGradient:
    """The operations of B in a stage's backward, and those of their results that B needs."""

    nodes: frozenset[Node]
    values: frozenset[Value]


def input_gradients(analysis: MicrobatchAnalysis, backward: Sequence[Node]) -> InputGradient:
    """The part of a stage's backward, in order, that belongs to B."""
    own = set(backward)
    outgoing = {v for n in backward for v in n.values if _leaves(analysis, v, own)}
    reach = {} if outgoing else _reach(analysis, backward)
    nodes: set[Node] = set()
    values = set(outgoing)
    for node in reversed(backward):
        needed_results = [v for v in node.values if v in values or len(reach.get(v, ())) > 1]
        if needed_results:
            nodes.add(node)
            values.update(needed_results)
            values.update(node.operands)
    results = {v for node in own for v in node.values}
    return InputGradient(frozenset(nodes), frozenset(values & results))


def _leaves(analysis: MicrobatchAnalysis, value: Value, own: set[Node]) -> bool:
    """Whether a backward operation of another stage uses the value, perhaps through light work."""
    for user in analysis.graph.users.get(value, ()):
        if user in analysis.after or user in analysis.late or user in own:
            continue
        if not analysis.is_light(user) or any(_leaves(analysis, v, own) for v in user.values):
            return True
    return False


def _reach(analysis: MicrobatchAnalysis, backward: Sequence[Node]) -> dict[Value, frozenset[Value]]:
    """For each value of a stage's backward, the values summed over microbatches that depend on it."""
    reach: dict[Value, frozenset[Value]] = {}
    own = set(backward)
    for node in reversed(backward):
        for value in node.values:
            reached: set[Value] = set()
            for user in analysis.graph.users.get(value, ()):
                if user in analysis.after or user in analysis.late:
                    reached.add(value)
                elif user in own:
                    reached.update(*(reach[v] for v in user.values))
            reach[value] = frozenset(reached)
    return reach


@dataclass
class CallSplitter:
    """Splits calls of functions that compute both; a function is split once for each set of results that B needs."""

    module: Module
    split_functions: dict[tuple[str, tuple[int, ...]], _SplitFunction | None] = field(default_factory=dict)

    def split(self, node: Node, input_results: frozenset[Value]) -> bool:
        """Replace a call by two: for the results that B needs and for the rest; False if there is no rest."""
        name = str(node.callee)
        key = (name, tuple(i for i, v in enumerate(node.values) if v in input_results))
        if key not in self.split_functions:
            self.split_functions[key] = _split_function(self.module, name, key[1])
        split_function = self.split_functions[key]
        if split_function is None:
            return False
        op, values = node.op, node.values
        call_operands = list(op.operands)
        with context(), mlir.InsertionPoint(op):
            operands = [call_operands[i] for i in split_function.first_takes]
            first = build_call(split_function.first, operands, split_function.first_types, op.location)
            crossing = first[len(split_function.first_gives) :]
            operands = [*(call_operands[i] for i in split_function.second_takes), *crossing]
            types = [values[i].type for i in split_function.second_gives]
            second = build_call(split_function.second, operands, types, op.location)
        for i, new in zip(
            (*split_function.first_gives, *split_function.second_gives),
            (*first[: len(split_function.first_gives)], *second),
            strict=True,
        ):
            values[i].replace_all_uses_with(new)
        for new_op in (first[0].owner, second[0].owner):
            copy_marks(op, new_op)
        op.operation.erase()
        return True


@dataclass(frozen=True)
class _SplitFunction:
    """The two functions that replace one; ints are indices of its arguments and results."""

    first: str
    second: str
    first_takes: tuple[int, ...]
    first_gives: tuple[int, ...]
    first_types: tuple[object, ...]
    """Of its results: those of the original function, then those that the second function takes."""
    second_takes: tuple[int, ...]
    second_gives: tuple[int, ...]


def _split_function(module: Module, name: str, input_results: tuple[int, ...]) -> _SplitFunction | None:
    function = module.functions()[name]
    graph = Graph.of(function)
    results = list(terminator(function).operands)
    cone = graph.cone(results[i] for i in input_results)
    rest = [n for n in graph.nodes if n not in cone]
    available = {v for n in cone for v in n.values} | set(entry(function).arguments)
    first_gives = tuple(i for i, v in enumerate(results) if v in available)
    second_gives = tuple(i for i in range(len(results)) if i not in first_gives)
    if not rest or not second_gives:
        return None
    arguments = list(entry(function).arguments)
    argument_set = set(arguments)
    used = list(dict.fromkeys(v for n in rest for v in n.operands))
    crossing = [v for v in used if v in available and v not in argument_set]
    first_takes = _used(arguments, [*(v for n in cone for v in n.operands), *(results[i] for i in first_gives)])
    second_takes = _used(arguments, used)
    takes = [arguments[i] for i in first_takes]
    first = _function(module, f"{name}_input", graph, cone, takes, [*(results[i] for i in first_gives), *crossing])
    takes = [*(arguments[i] for i in second_takes), *crossing]
    second = _function(module, f"{name}_weight", graph, set(rest), takes, [results[i] for i in second_gives])
    types = (*(results[i].type for i in first_gives), *(v.type for v in crossing))
    return _SplitFunction(first, second, first_takes, first_gives, types, second_takes, second_gives)


def _used(arguments: Sequence[Value], values: Sequence[Value]) -> tuple[int, ...]:
    value_set = set(values)
    return tuple(i for i, argument in enumerate(arguments) if argument in value_set)


def _function(
    module: Module, name: str, graph: Graph, nodes: set[Node], takes: Sequence[Value], gives: Sequence[Value]
) -> str:
    """A new function of some operations of another."""
    functions, number, fresh = module.functions(), 1, name
    while fresh in functions:
        fresh, number = f"{name}_{number}", number + 1
    function = build_function(module, fresh, [v.type for v in takes])
    values = dict(zip(takes, entry(function).arguments, strict=True))
    with context(), mlir.InsertionPoint(entry(function)):
        for node in graph.nodes:
            if node in nodes:
                copy_node(node, values)
    finish_function(function, [values[v] for v in gives])
    return fresh
