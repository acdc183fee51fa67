"""Put the layers that a forward was shortened by into its joint graph: copies of a layer that was traced.

The layers before and behind the gap, `before` and `behind`, must be equal in the joint graph too: nodes and constants,
and each operand the same inner value, the same value of the neighbour on the forward's side or on the backward's, the
same shared value, or the layer's own parameter, buffer or random number. Then so is each layer between them, as its
neighbours are such layers. A graph in which they differ is not grown.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx
from torch._functorch._aot_autograd.descriptors import (
    BufferAOTInput,
    GradAOTOutput,
    ParamAOTInput,
)

from ...ir.layers import Layer, layer_of
from ..captured import META_KEY, Origin, origin_of
from ..graph.random_op import NUMBER, RANDOM
from .shortened import Run


@dataclass(frozen=True)
class _From:
    """Where an operand comes from: a position among the nodes of the layer itself, or of a neighbour."""

    side: int
    """0: the layer itself; -1: the layer before it in the forward; 1: the one behind it."""
    position: int


@dataclass(frozen=True)
class _Own:
    """A parameter or buffer of the layer, by its name inside it."""

    name: str


class _Unlike(Exception):
    """The two traced layers differ."""


def grow(joint: fx.GraphModule, run: Run, model_attribute: str) -> bool:
    """Put in the layers that were left out; False, and the graph as it was, where the traced ones are not alike."""
    growing = _Growing(joint.graph, run, model_attribute)
    try:
        operands = growing.operands()
    except _Unlike:
        return False
    growing.copy(operands)
    return True


class _Growing:
    def __init__(self, graph: fx.Graph, run: Run, model_attribute: str) -> None:
        self.graph = graph
        self.run = run
        self.path = run.container.removeprefix(f"{model_attribute}.")
        self.before: dict[fx.Node, int] = {}
        self.behind: dict[fx.Node, int] = {}
        for node in graph.nodes:
            nodes = self._nodes_of(node) if node.op == "call_function" else None
            if nodes is not None:
                nodes[node] = len(nodes)
        self.tensors = {node: node.meta["desc"] for node in graph.find_nodes(op="placeholder")}

    def _nodes_of(self, node: fx.Node) -> dict[fx.Node, int] | None:
        """The traced layer that a node belongs to."""
        if node.target is operator.getitem:
            maker: Any = node.args[0]
            return next((nodes for nodes in (self.before, self.behind) if maker in nodes), None)
        layer = self._layer(node)
        traced = {self.run.before: self.before, self.run.behind: self.behind}
        return None if layer is None or layer.container != self.path else traced.get(layer.index)

    def _layer(self, node: fx.Node) -> Layer | None:
        origin = origin_of(node)
        return layer_of(origin.module_path, origin.backward)

    def operands(self) -> list[Any]:
        """For each node of a layer, its arguments with the sources of its operands. Raises _Unlike."""
        if len(self.before) != len(self.behind):
            raise _Unlike
        pairs = zip(self.before, self.behind, strict=True)
        sources = [self._arguments(one, other) for one, other in pairs]
        self._check_users()
        self._check_results()
        return sources

    def _arguments(self, one: fx.Node, other: fx.Node) -> Any:
        if one.target is not other.target or origin_of(one).backward != origin_of(other).backward:
            raise _Unlike
        if one.target is not RANDOM:
            return self._source((one.args, one.kwargs), (other.args, other.kwargs))
        if self._random(one, self.run.before) != self._random(other, self.run.behind):
            raise _Unlike
        rest = [(*node.args[:NUMBER], *node.args[NUMBER + 1 :]) for node in (one, other)]
        args = self._source(*rest)
        return (*args[:NUMBER], one.args[NUMBER], *args[NUMBER:]), {}

    def _random(self, node: fx.Node, layer: int) -> int:
        """Which of its layer's random ops a node is."""
        return list(self.run.random_numbers[layer]).index(node.args[NUMBER])  # type: ignore[arg-type]

    def _source(self, one: Any, other: Any) -> Any:
        """An argument of both layers, with its operands' sources in place of them."""
        if type(one) is not type(other):
            raise _Unlike
        if isinstance(one, (tuple, list)):
            if len(one) != len(other):
                raise _Unlike
            return tuple([self._source(a, b) for a, b in zip(one, other, strict=True)])
        if isinstance(one, dict):
            if one.keys() != other.keys():
                raise _Unlike
            return {key: self._source(value, other[key]) for key, value in one.items()}
        if not isinstance(one, fx.Node):
            if repr(one) != repr(other):
                raise _Unlike
            return one
        return self._operand(one, other)

    def _operand(self, one: fx.Node, other: fx.Node) -> Any:
        if one in self.before and self.behind.get(other) == self.before[one]:
            return _From(0, self.before[one])
        if one not in self.before and other in self.before:
            return _From(-1, self.before[other])
        if other not in self.behind and one in self.behind:
            return _From(1, self.behind[one])
        names = [self._own_name(node, n) for node, n in ((one, self.run.before), (other, self.run.behind))]
        if names[0] is not None and names[0] == names[1]:
            return _Own(names[0])
        if one is not other or one in self.before or one in self.behind:
            raise _Unlike
        return one

    def _own_name(self, node: fx.Node, layer: int) -> str | None:
        """The name inside a layer of its parameter or buffer; None for other nodes."""
        prefix = self._prefix(layer)
        match self.tensors.get(node):
            case ParamAOTInput(target=target) | BufferAOTInput(target=target) if target.startswith(prefix):
                return str(target.removeprefix(prefix))
        return None

    def _prefix(self, layer: int) -> str:
        return f"{self.run.container}.{layer}."

    def _check_users(self) -> None:
        """Values may be used in the layer, on the forward's way by the next, on the backward's by the one before it.

        What takes the place of that one before the first layer, or of the next behind the last, is not asked.
        """
        last = self.run.behind + 1
        for nodes, neighbours in ((self.before, self.behind), (self.behind, self.before)):
            for node in nodes:
                is_backward = origin_of(node).backward
                for user in node.users:
                    if user in nodes or user.op == "output":
                        continue
                    to_neighbour = user in neighbours and is_backward == (nodes is self.behind)
                    to_border = is_backward == (nodes is self.before) and user not in neighbours
                    if not to_neighbour and not (to_border and self._is_at_border(user, last, nodes is self.before)):
                        raise _Unlike

    def _is_at_border(self, user: fx.Node, last: int, is_before: bool) -> bool:
        """Whether a node stands where the run begins (not in its last layer), or where it ends (in that layer)."""
        maker: Any = user.args[0] if user.target is operator.getitem else user
        layer = self._layer(maker)
        in_last = layer is not None and layer.container == self.path and layer.index == last
        return in_last != is_before

    def _results(self) -> list[tuple[fx.Node | None, Any]]:
        """The graph's results with their meanings."""
        output = self.graph.output_node()
        values: Sequence[Any] = output.args[0]  # type: ignore[assignment]
        return list(zip(values, output.meta["desc"], strict=True))

    def _gradient_of(self, meaning: Any, layer: int) -> str | None:
        """The name inside a layer of the parameter that a result is the gradient of."""
        match meaning:
            case GradAOTOutput(grad_of=ParamAOTInput(target=target)) if target.startswith(self._prefix(layer)):
                return str(target.removeprefix(self._prefix(layer)))
        return None

    def _check_results(self) -> None:
        """The results that the layers compute must be the gradients of their own parameters, and alike."""
        gradients: list[dict[str, int | None]] = [{}, {}]
        for value, meaning in self._results():
            for index, (nodes, layer) in enumerate(((self.before, self.run.before), (self.behind, self.run.behind))):
                name = self._gradient_of(meaning, layer)
                if name is not None:
                    gradients[index][name] = None if value is None else nodes.get(value, -1)
                elif value in nodes:
                    raise _Unlike
        if gradients[0] != gradients[1] or -1 in gradients[0].values():
            raise _Unlike

    def copy(self, operands: Sequence[Any]) -> None:
        """Add the nodes, inputs and results of the layers that were left out."""
        order = [self.run.before, *self.run.left_out, self.run.behind]
        made: dict[int, dict[int, fx.Node]] = {n: {} for n in order}
        made[self.run.before] = {position: node for node, position in self.before.items()}
        made[self.run.behind] = {position: node for node, position in self.behind.items()}
        own = {layer: self._inputs(layer) for layer in self.run.left_out}
        templates = list(self.before)
        forward = [p for p, node in enumerate(templates) if not origin_of(node).backward]
        backward = [p for p, node in enumerate(templates) if origin_of(node).backward]

        def value(source: Any, layer: int) -> Any:
            match source:
                case _From(side=side, position=position):
                    return made[layer + side][position]
                case _Own(name=name):
                    return own[layer][name]
                case tuple():
                    return tuple([value(item, layer) for item in source])
                case dict():
                    return {key: value(item, layer) for key, item in source.items()}
            return source

        def add(layer: int, positions: Sequence[int]) -> None:
            for position in positions:
                template = templates[position]
                args, kwargs = value(operands[position], layer)
                if template.target is RANDOM:
                    which = self._random(template, self.run.before)
                    args = (*args[:NUMBER], self.run.random_numbers[layer][which], *args[NUMBER + 1 :])
                node = self.graph.create_node("call_function", template.target, args, kwargs)
                node.meta = {**template.meta, META_KEY: self._place(origin_of(template), layer)}
                made[layer][position] = node

        if forward:
            with self.graph.inserting_before(templates[forward[-1]].next):
                for layer in self.run.left_out:
                    add(layer, forward)
        if backward:
            with self.graph.inserting_before(templates[backward[0]]):
                for layer in reversed(self.run.left_out):
                    add(layer, backward)
        self._close(made[self.run.left_out[-1]], made[self.run.left_out[0]])
        self._add_results(made)

    def _place(self, origin: Origin, layer: int) -> Origin:
        rest = origin.module_path.removeprefix(f"{self.path}.{self.run.before}")
        return replace(origin, module_path=f"{self.path}.{layer}{rest}")

    def _close(self, last: Mapping[int, fx.Node], first: Mapping[int, fx.Node]) -> None:
        """Let the traced layers take the values of the layers between them."""
        for node in self.behind:
            for operand in [o for o in node.all_input_nodes if o in self.before]:
                node.replace_input_with(operand, last[self.before[operand]])
        for node in self.before:
            for operand in [o for o in node.all_input_nodes if o in self.behind]:
                node.replace_input_with(operand, first[self.behind[operand]])

    def _inputs(self, layer: int) -> dict[str, fx.Node]:
        """New placeholders for a layer's parameters and buffers, by their names inside it."""
        inputs = {}
        for node, meaning in self.tensors.items():
            name = self._own_name(node, self.run.before)
            if name is not None:
                with self.graph.inserting_before(node):
                    inputs[name] = self.graph.placeholder(f"{node.name}_{layer}")
                inputs[name].meta = {**node.meta, "desc": replace(meaning, target=self._prefix(layer) + name)}
        return inputs

    def _add_results(self, made: Mapping[int, Mapping[int, fx.Node]]) -> None:
        """Return the gradients of the new layers' parameters."""
        results = self._results()
        for value, meaning in list(results):
            name = self._gradient_of(meaning, self.run.before)
            for layer in self.run.left_out if name is not None else ():
                parameter = replace(meaning.grad_of, target=f"{self._prefix(layer)}{name}")
                gradient = None if value is None else made[layer][self.before[value]]
                results.append((gradient, replace(meaning, grad_of=parameter)))
        output = self.graph.output_node()
        output.args = (tuple(value for value, _ in results),)
        output.meta["desc"] = [meaning for _, meaning in results]
