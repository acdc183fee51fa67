"""A function as a graph in plain Python: nodes in order, the maker and users of each value, copies of nodes."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..ir.bindings import Location, Operation, Type, Value, mlir
from ..ir.lanes import lane_of
from ..ir.locations import Origin, from_location
from ..ir.module import (
    Module,
    Record,
    argument_records,
    build_call,
    callee,
    entry,
    operations,
    result_records,
    terminator,
)
from ..ir.operations import Call, build, copy_attributes, flatten, is_packing, made_by, read, regroup, results_of


@dataclass(eq=False)
class Node:
    """One operation, or one call of a function (`call` is None then)."""

    op: Operation
    call: Call | None
    operands: list[Value]
    results: list[Any]
    """A value for each result, a list of values for each list of tensors."""

    @property
    def values(self) -> list[Value]:
        """The results, lists taken apart."""
        return flatten(self.results)

    @property
    def name(self) -> str:
        """The operation's name; "func.call" for a call."""
        return "func.call" if self.call is None else self.call.name

    @property
    def callee(self) -> str | None:
        """The function that a call calls."""
        return callee(self.op)

    @cached_property
    def origin(self) -> Origin:
        """The place in the user's model."""
        return from_location(self.op.location)


@dataclass
class Graph:
    """The nodes of one function in order, without the packing of lists."""

    function: Operation
    nodes: list[Node]
    maker: dict[Value, Node] = field(default_factory=dict)
    """The node that makes each value; arguments have none."""
    users: dict[Value, list[Node]] = field(default_factory=dict)

    @staticmethod
    def of(function: Operation) -> Graph:
        """Read a function."""
        nodes = [_node(op) for op in list(operations(function))[:-1] if not is_packing(op)]
        graph = Graph(function, nodes)
        for node in nodes:
            graph.maker.update(dict.fromkeys(node.values, node))
            for value in dict.fromkeys(node.operands):
                graph.users.setdefault(value, []).append(node)
        return graph

    @cached_property
    def arguments(self) -> list[tuple[Value, Record]]:
        """The function's arguments with their records."""
        return list(zip(entry(self.function).arguments, argument_records(self.function), strict=True))

    @cached_property
    def results(self) -> list[tuple[Value, Record]]:
        """The function's results with their records."""
        return list(zip(terminator(self.function).operands, result_records(self.function), strict=True))

    @property
    def calls(self) -> list[Node]:
        """The calls of functions, in order."""
        return [node for node in self.nodes if node.call is None]

    def dependents(self, values: Iterable[Value]) -> set[Node]:
        """The nodes that depend on one of the values."""
        tainted, dependents = set(values), set[Node]()
        for node in self.nodes:
            if any(value in tainted for value in node.operands):
                dependents.add(node)
                tainted.update(node.values)
        return dependents

    def cone(self, values: Iterable[Value], within: Container[Node] | None = None) -> set[Node]:
        """The nodes on which the values depend; `within` restricts the search to these nodes."""
        needed, cone = set(values), set[Node]()
        for node in reversed(self.nodes):
            if within is not None and node not in within:
                continue
            if any(value in needed for value in node.values):
                cone.add(node)
                needed.update(node.operands)
        return cone


def copy_node(node: Node, values: MutableMapping[Value, Value], loc: Location | None = None) -> None:
    """Copy a node to the insertion point; `values` maps old values to new ones, and learns the results."""
    loc = node.op.location if loc is None else loc
    operands = [values[v] for v in node.operands]
    types = regroup(node.results, [v.type for v in node.values])
    results = build_like(node, operands, types, loc)
    values.update(zip(node.values, flatten(results), strict=True))


def build_like(node: Node, operands: Sequence[Value], types: Sequence[Any], loc: Location) -> list[Any]:
    """The node's operation with other operands and result types, at the insertion point."""
    if node.call is None:
        return list(build_call(str(node.callee), operands, list[Type](types), loc))
    results = build(node.call.replace_values(operands), types, loc, lane_of(node.op))
    for made in flatten(results)[:1]:
        copy_attributes(node.op, made_by(made))
    return results


def made_at(module: Module, value: Value) -> Location | None:
    """The location of the operation that makes a value, also inside called functions; None for an argument."""
    functions = module.functions()
    while isinstance(value.owner, mlir.Operation | mlir.OpView):
        name = callee(value.owner)
        if name is None:
            return value.owner.location
        value = list(terminator(functions[name]).operands)[mlir.OpResult(value).result_number]
    return None


def replaced(values: Mapping[Value, Value], old_values: Iterable[Value]) -> list[Value]:
    """The new value of each old one."""
    return [values[v] for v in old_values]


def _node(op: Operation) -> Node:
    if callee(op) is not None:
        return Node(op, None, list(op.operands), list(op.results))
    call = read(op)
    if call is None:
        raise RuntimeError(f"an operation that is none of Stretto's: {op}")
    return Node(op, call, call.values(), results_of(op))
