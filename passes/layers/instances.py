"""Group operations of main into instances of repeated layers, and find equal instances.

A layer is a number in a numbered container ("layers.3"); its operations have a module path that begins with it. Forward
and backward are separate instances. A call of a function that computes a layer already is an instance too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...ir.bindings import Operation, Value, mlir
from ...ir.layers import Layer, layer_of
from ...ir.module import entry, terminator
from ...ir.operations import Call
from ..graph import Graph, Node


@dataclass(eq=False)
class Instance:
    """The operations of one layer in one direction."""

    layer: Layer
    nodes: list[Node] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    """Values from outside, in the order of their first use."""
    values: list[Value | None] = field(default_factory=list)
    """Values made inside, in order; None for a value that a call does not return."""
    call: Node | None = None
    """The call of a function that computes the instance already: `nodes` are the function's."""

    @property
    def own_nodes(self) -> list[Node]:
        """The instance's nodes in main."""
        return self.nodes if self.call is None else [self.call]

    def signature(self) -> tuple[Any, ...]:
        """A key that is equal for instances that one function can replace; fills `inputs` and `values` but of a call.

        For each operation its name, constants, operands by number, and the types of its results; then the types of the
        inputs.
        """
        inputs: list[Value] = []
        values: list[Value | None] = []
        numbers: dict[Value, int] = {}
        lines = []
        for node in self.nodes:
            operands = []
            for value in node.operands:
                if value not in numbers:
                    numbers[value] = -1 - len(inputs)
                    inputs.append(value)
                operands.append(numbers[value])
            results = node.values
            for value in results:
                numbers[value] = len(values)
                values.append(value)
            assert node.call is not None  # a layer calls nothing
            lines.append((node.name, _constants(node.call), tuple(operands), tuple(str(v.type) for v in results)))
        if self.call is None:
            self.inputs, self.values = inputs, values
        return (*lines, tuple(str(v.type) for v in inputs))


@dataclass(frozen=True)
class Body:
    """A function that computes layers, as what its calls are."""

    nodes: list[Node]
    signature: tuple[Any, ...]
    arguments: list[int]
    """The positions of the arguments, in the order of their first use."""
    results: list[int | None]
    """For each value made inside: the result that it is, if it is one."""

    @staticmethod
    def of(function: Operation) -> Body | None:
        """Read a function; None unless it calls none, and each result is a value of its own, made inside."""
        graph = Graph.of(function)
        if graph.calls:
            return None
        inside = Instance(Layer("", 0, backward=False), graph.nodes)
        signature = inside.signature()
        positions = {argument: index for index, argument in enumerate(entry(function).arguments)}
        results = {value: index for index, value in enumerate(terminator(function).operands)}
        if len(results) != len(terminator(function).operands) or not results.keys() <= {*inside.values}:
            return None
        arguments = [positions[value] for value in inside.inputs]
        return Body(graph.nodes, signature, arguments, [results.get(value) for value in inside.values])

    def called(self, layer: Layer, call: Node) -> Instance:
        """The instance that a call computes."""
        inputs = [call.operands[i] for i in self.arguments]
        values = [None if i is None else call.results[i] for i in self.results]
        return Instance(layer, self.nodes, inputs, values, call)


def called_layer(call: Node) -> Layer | None:
    """The layer that a call computes, by its place; None for another call."""
    layer = layer_of(call.origin.module_path, call.origin.backward)
    return layer if layer is not None and layer.path == call.origin.module_path else None


def equal_instances(nodes: Sequence[Node], bodies: Mapping[str, Body]) -> tuple[list[list[Instance]], list[Instance]]:
    """Groups of instances with equal signatures, in order of first appearance, and the instances without an equal.

    `bodies` has the functions that the nodes call.
    """
    instances: dict[Layer, Instance] = {}
    found: list[tuple[Instance, tuple[Any, ...] | None]] = []
    for node in nodes:
        if node.call is None:
            layer, body = called_layer(node), bodies[str(node.callee)]
            assert layer is not None  # other calls are written out before
            found.append((body.called(layer, node), body.signature))
            continue
        layer = layer_of(node.origin.module_path, node.origin.backward)
        if layer is not None:
            if layer not in instances:
                instances[layer] = Instance(layer)
                found.append((instances[layer], None))
            instances[layer].nodes.append(node)
    numbers: dict[tuple[Any, ...], int] = {}
    by_body = {id(body.signature): numbers.setdefault(body.signature, len(numbers)) for body in bodies.values()}
    groups: dict[tuple[str, bool, int], list[Instance]] = {}
    for instance, signature in found:
        number = by_body.get(id(signature), -1)
        if signature is None:
            number = numbers.setdefault(instance.signature(), len(numbers))
        groups.setdefault((instance.layer.container, instance.layer.backward, number), []).append(instance)
    alone = [group[0] for group in groups.values() if len(group) == 1]
    return [group for group in groups.values() if len(group) > 1], alone


def _constants(call: Call) -> str:
    """The constant arguments of a call, as text."""

    def constant(argument: Any) -> Any:
        if isinstance(argument, mlir.Value):
            return "%"
        if isinstance(argument, (list, tuple)):
            return [constant(a) for a in argument]
        return argument

    return repr(([constant(a) for a in call.args], {k: constant(v) for k, v in sorted(call.kwargs.items())}))
