"""Find the layers of a captured graph that are equal, forward and backward together, before anything is converted.

A layer is a number in a numbered container ("layers.3"); its nodes have a module path that begins with it. Two layers
are equal if their nodes, constants, types and dataflow are, value by value, also from the forward to the backward. What
comes from outside is an operand: parameters, buffers, the numbers of random ops.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ..ir.layers import Layer, call_order, layer_of
from .captured import origin_of
from .graph.random_op import NUMBER, RANDOM


@dataclass(eq=False)
class Part:
    """The nodes of one layer in one direction."""

    layer: Layer
    nodes: list[fx.Node] = field(default_factory=list)
    inputs: list[fx.Node] = field(default_factory=list)
    """Nodes outside of this part that it uses, in order; a random op of its own stands for the op's number."""
    exports: list[fx.Node] = field(default_factory=list)
    """Nodes of this part that others use, in any of the equal layers."""


@dataclass(eq=False)
class _Layer:
    """The parts of one layer."""

    parts: list[Part] = field(default_factory=list)
    values: list[fx.Node] = field(default_factory=list)
    """The nodes of all parts, in order."""

    def part(self, layer: Layer) -> Part:
        """Its part in one direction; the forward comes first."""
        for part in self.parts:
            if part.layer.backward == layer.backward:
                return part
        part = Part(layer)
        self.parts = [*self.parts, part] if layer.backward else [part, *self.parts]
        return part


@dataclass(frozen=True)
class Repeated:
    """The equal layers of a graph, and the order of all that a main function computes."""

    groups: tuple[tuple[Part, ...], ...]
    """Parts that one function computes."""
    order: tuple[fx.Node | Part, ...]


class RepeatedLayers:
    """The search in one graph; `aliases` maps each node that returns its operand's value to the node that makes it."""

    def __init__(self, nodes: Sequence[fx.Node], aliases: Mapping[fx.Node, fx.Node]) -> None:
        self._nodes = [node for node in nodes if node.op == "call_function" and node not in aliases]
        self._output = next(node for node in reversed(nodes) if node.op == "output")
        self._aliases = aliases
        self._part_of: dict[fx.Node, Part] = {}
        self._layers: dict[tuple[str, int], _Layer] = {}
        self._operands: dict[fx.Node, list[fx.Node]] = {}

    def find(self) -> Repeated:
        """Group the nodes, and order them."""
        self._assign()
        groups = self._equal()
        while True:
            self._export(groups)
            order, refused = self._order(groups)
            if not refused:
                parts = [tuple(p) for group in groups for p in zip(*(layer.parts for layer in group), strict=True)]
                return Repeated(tuple(parts), tuple(order))
            kept = [[layer for layer in group if not refused.intersection(layer.parts)] for group in groups]
            groups = [group for group in kept if len(group) > 1]

    def _assign(self) -> None:
        """Give each node to its layer; the elements of a list of results belong to the node that makes them."""
        for node in self._nodes:
            self._operands[node] = [self._aliases.get(n, n) for n in node.all_input_nodes]
            if node.target is operator.getitem:
                part = self._part_of.get(self._operands[node][0])
            else:
                origin = origin_of(node)
                layer = layer_of(origin.module_path, origin.backward)
                part = None if layer is None else self._layer(layer).part(layer)
            if part is not None:
                part.nodes.append(node)
                self._part_of[node] = part

    def _layer(self, layer: Layer) -> _Layer:
        return self._layers.setdefault((layer.container, layer.index), _Layer())

    def _equal(self) -> list[list[_Layer]]:
        groups: dict[tuple[Any, ...], list[_Layer]] = {}
        for (container, _), layer in self._layers.items():
            groups.setdefault((container, *self._signature(layer)), []).append(layer)
        return [group for group in groups.values() if len(group) > 1]

    def _signature(self, layer: _Layer) -> Iterator[Any]:
        """A key that equal layers share; fills the layer's `values` and its parts' `inputs`."""
        numbers: dict[fx.Node, int] = {}
        outside = 0
        for part in layer.parts:
            yield part.layer.backward
            inputs: dict[fx.Node, None] = {}
            for node in part.nodes:
                for operand in self._operands[node]:
                    if self._part_of.get(operand) is not part:
                        inputs[operand] = None
                        if operand not in numbers:
                            outside -= 1
                            numbers[operand] = outside
                args: tuple[Any, ...] = node.args
                if node.target is RANDOM:
                    inputs[node] = None
                    args = (*args[:NUMBER], *args[NUMBER + 1 :])
                yield node.target, self._key(args, numbers), self._key(node.kwargs, numbers), _types(node)
                numbers[node] = len(layer.values)
                layer.values.append(node)
            part.inputs = list(inputs)
        yield tuple((number, _types(node)) for node, number in numbers.items() if number < 0)

    def _key(self, argument: Any, numbers: Mapping[fx.Node, int]) -> Any:
        if isinstance(argument, fx.Node):
            return numbers[self._aliases.get(argument, argument)], fx.Node
        if isinstance(argument, (tuple, list)):
            return tuple([self._key(item, numbers) for item in argument])
        if isinstance(argument, dict):
            return tuple([(name, self._key(item, numbers)) for name, item in argument.items()])
        return repr(argument) if isinstance(argument, float) else (argument, type(argument))

    def _export(self, groups: Sequence[Sequence[_Layer]]) -> None:
        """Fill the `exports` of all parts."""
        outward = {self._aliases.get(node, node) for node in self._output.all_input_nodes}
        for node, operands in self._operands.items():
            part = self._part_of.get(node)
            outward.update(operand for operand in operands if self._part_of.get(operand) is not part)
        for group in groups:
            indices = [i for i in range(len(group[0].values)) if any(layer.values[i] in outward for layer in group)]
            for layer in group:
                for part in layer.parts:
                    part.exports = [layer.values[i] for i in indices if self._part_of[layer.values[i]] is part]

    def _order(self, groups: Sequence[Sequence[_Layer]]) -> tuple[list[fx.Node | Part], set[fx.Node | Part]]:
        folded = {part for group in groups for layer in group for part in layer.parts}
        owner: dict[fx.Node, fx.Node | Part] = {}
        positions: dict[fx.Node | Part, int] = {}
        for position, node in enumerate(self._nodes):
            part = self._part_of.get(node)
            owner[node] = item = part if part is not None and part in folded else node
            positions[item] = position
        needs = {
            (owner[operand], owner[node]): None
            for node, operands in self._operands.items()
            for operand in operands
            if operand in owner and owner[operand] is not owner[node]
        }
        return call_order(positions, needs)


def _types(node: fx.Node) -> Any:
    """The dtypes and shapes of a node's results."""
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape)
    if isinstance(value, (tuple, list)):
        return tuple([item if item is None else (item.dtype, tuple(item.shape)) for item in value])
    return value
