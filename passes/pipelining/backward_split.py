"""A stage's backward in two: what gradients of the stage's input need (B), and the rest, gradients of weights (W).

B is the cone of what the stage hands to the stages before it. A stage that hands out nothing has a chain too, on which
the gradients of its layers hang: what at least two gradients need. An operation that gives both is parted: a function
into two, one with an output mask into a pair.
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
from .time_axis import TimeAxis

_MASKED = (
    "aten.convolution_backward.default",
    "aten.native_layer_norm_backward.default",
    "aten.native_group_norm_backward.default",
)
"""Operations whose last argument says which of their results are wanted, the gradient of the input first."""


def part_masked(module: Module, remarks: CountedRemarks) -> None:
    """Write every backward with an output mask that gives input and weight gradients as two, one for each."""
    for function in module.functions().values():
        for op in list(operations(function))[:-1]:
            call = read(op)
            if call is not None and call.name in _MASKED and call.args[-1][0] and any(call.args[-1][1:]):
                origin = from_location(op.location)
                _part(op, call)
                remarks.applied(f'"{call.name}" became one for the input and one for the weights', origin)


def _part(op: Operation, call: Call) -> None:
    types = [r.type for r in op.results]
    left = [absent() for _ in types]
    with context(), mlir.InsertionPoint(op):
        mask, given = [True, False, False], [types[0], *left[1:]]
        first = build(Call(call.name, (*call.args[:-1], mask)), given, op.location)
        mask, given = [False, *call.args[-1][1:]], [left[0], *types[1:]]
        second = build(Call(call.name, (*call.args[:-1], mask)), given, op.location)
    for old, new in zip(op.results, [first[0], *second[1:]], strict=True):
        old.replace_all_uses_with(new)
    for made in (first[0].owner, second[0].owner):
        copy_marks(op, made)
    op.operation.erase()


@dataclass(frozen=True)
class Needed:
    """Of a stage's backward: the operations of B, and which of their results B is about."""

    nodes: frozenset[Node]
    values: frozenset[Value]


def input_gradients(time: TimeAxis, backward: Sequence[Node]) -> Needed:
    """What of a stage's backward operations, in order, belongs to B."""
    own = set(backward)
    outgoing = {v for n in backward for v in n.values if _leaves(time, v, own)}
    reach = {} if outgoing else _reach(time, backward)
    nodes: set[Node] = set()
    values = set(outgoing)
    for node in reversed(backward):
        wanted = [v for v in node.values if v in values or len(reach.get(v, ())) > 1]
        if wanted:
            nodes.add(node)
            values.update(wanted)
            values.update(node.operands)
    made = {v for node in own for v in node.values}
    return Needed(frozenset(nodes), frozenset(values & made))


def _leaves(time: TimeAxis, value: Value, own: set[Node]) -> bool:
    """Whether a backward operation of another stage uses the value, perhaps through what belongs to no stage."""
    for user in time.graph.users.get(value, ()):
        if user in time.after or user in time.late or user in own:
            continue
        if not time.is_light(user) or any(_leaves(time, v, own) for v in user.values):
            return True
    return False


def _reach(time: TimeAxis, backward: Sequence[Node]) -> dict[Value, frozenset[Value]]:
    """The sums that each value of a stage's backward goes into, each by the value that is summed."""
    found: dict[Value, frozenset[Value]] = {}
    own = set(backward)
    for node in reversed(backward):
        for value in node.values:
            reached: set[Value] = set()
            for user in time.graph.users.get(value, ()):
                if user in time.after or user in time.late:
                    reached.add(value)
                elif user in own:
                    reached.update(*(found[v] for v in user.values))
            found[value] = frozenset(reached)
    return found


@dataclass
class CallParter:
    """Parts calls of functions that give both; a function is parted once for each set of wanted results."""

    module: Module
    known: dict[tuple[str, tuple[int, ...]], _Parted | None] = field(default_factory=dict)

    def part(self, node: Node, wanted: frozenset[Value]) -> bool:
        """Put two calls in a call's place, for the wanted results and for the rest; False where there is no rest."""
        name = str(node.callee)
        key = (name, tuple(i for i, v in enumerate(node.values) if v in wanted))
        if key not in self.known:
            self.known[key] = _parted(self.module, name, key[1])
        parted = self.known[key]
        if parted is None:
            return False
        op, values = node.op, node.values
        given = list(op.operands)
        with context(), mlir.InsertionPoint(op):
            operands = [given[i] for i in parted.first_takes]
            first = build_call(parted.first, operands, parted.first_types, op.location)
            kept = first[len(parted.first_gives) :]
            operands = [*(given[i] for i in parted.second_takes), *kept]
            types = [values[i].type for i in parted.second_gives]
            second = build_call(parted.second, operands, types, op.location)
        for i, new in zip(
            (*parted.first_gives, *parted.second_gives), (*first[: len(parted.first_gives)], *second), strict=True
        ):
            values[i].replace_all_uses_with(new)
        for made in (first[0].owner, second[0].owner):
            copy_marks(op, made)
        op.operation.erase()
        return True


@dataclass(frozen=True)
class _Parted:
    """Two functions that do what one did: numbers are those of its arguments and results."""

    first: str
    second: str
    first_takes: tuple[int, ...]
    first_gives: tuple[int, ...]
    first_types: tuple[object, ...]
    """Of its results: those of the function, then what the second function takes from it."""
    second_takes: tuple[int, ...]
    second_gives: tuple[int, ...]


def _parted(module: Module, name: str, wanted: tuple[int, ...]) -> _Parted | None:
    function = module.functions()[name]
    graph = Graph.of(function)
    results = list(terminator(function).operands)
    cone = graph.cone(results[i] for i in wanted)
    rest = [n for n in graph.nodes if n not in cone]
    made = {v for n in cone for v in n.values} | set(entry(function).arguments)
    first_gives = tuple(i for i, v in enumerate(results) if v in made)
    second_gives = tuple(i for i in range(len(results)) if i not in first_gives)
    if not rest or not second_gives:
        return None
    arguments = list(entry(function).arguments)
    given = set(arguments)
    used = list(dict.fromkeys(v for n in rest for v in n.operands))
    crossing = [v for v in used if v in made and v not in given]
    first_takes = _used(arguments, [*(v for n in cone for v in n.operands), *(results[i] for i in first_gives)])
    second_takes = _used(arguments, used)
    takes = [arguments[i] for i in first_takes]
    first = _function(module, f"{name}_input", graph, cone, takes, [*(results[i] for i in first_gives), *crossing])
    takes = [*(arguments[i] for i in second_takes), *crossing]
    second = _function(module, f"{name}_weight", graph, set(rest), takes, [results[i] for i in second_gives])
    types = (*(results[i].type for i in first_gives), *(v.type for v in crossing))
    return _Parted(first, second, first_takes, first_gives, types, second_takes, second_gives)


def _used(arguments: Sequence[Value], values: Sequence[Value]) -> tuple[int, ...]:
    wanted = set(values)
    return tuple(i for i, argument in enumerate(arguments) if argument in wanted)


def _function(
    module: Module, name: str, graph: Graph, nodes: set[Node], takes: Sequence[Value], gives: Sequence[Value]
) -> str:
    """A function of some of another's operations."""
    taken, number, fresh = module.functions(), 1, name
    while fresh in taken:
        fresh, number = f"{name}_{number}", number + 1
    made = build_function(module, fresh, [v.type for v in takes])
    values = dict(zip(takes, entry(made).arguments, strict=True))
    with context(), mlir.InsertionPoint(entry(made)):
        for node in graph.nodes:
            if node in nodes:
                copy_node(node, values)
    finish_function(made, [values[v] for v in gives])
    return fresh
