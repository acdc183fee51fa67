"""Leave the middle of a run of equal layers out of a forward, so that its joint graph is traced for a few layers.

Before                                        After
  %1 = .. %0, %w0        layers.0               %1 = .. %0, %w0        layers.0
  %2 = .. %1, %w1        layers.1               %2 = .. %1, %w1        layers.1
  ..                                            %8 = .. %2, %w8        layers.8
  %9 = .. %8, %w9        layers.9               %9 = .. %8, %w9        layers.9

Layers are equal if their nodes are, with constants, shapes, strides, dtypes and source lines; if each takes the same
values of the layer before it and shares the others; and if their own parameters and buffers are alike, those that
require a gradient included. A layer that changes a tensor in place, calls a custom function, enters an autocast region
or shares memory with another has no equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import fx, nn

from ...ir.layers import layer_of, unnumbered_path
from ..graph.autocast import is_boundary
from ..graph.random_op import NUMBER, RANDOM
from ..metadata import forward_path


@dataclass(frozen=True)
class Run:
    """Equal layers, of which those between `before` and `behind` are left out."""

    container: str
    """Its path in the traced module."""
    before: int
    behind: int
    random_numbers: Mapping[int, Sequence[int]]
    """The numbers of a layer's random ops, by layer."""

    @property
    def left_out(self) -> range:
        """The numbers of the layers that are left out."""
        return range(self.before + 1, self.behind)


@dataclass(eq=False)
class _Layer:
    nodes: list[fx.Node] = field(default_factory=list)
    positions: dict[fx.Node, int] = field(default_factory=dict)

    def add(self, node: fx.Node) -> None:
        self.positions[node] = len(self.nodes)
        self.nodes.append(node)


LEAST = 4
"""Of so many equal layers in a row one is left out: the first and the last two stay."""


def most_layers(forward: fx.GraphModule, model_attribute: str) -> tuple[str, int] | None:
    """The container with the most layers, and how many; None where none has as many as a run needs."""
    counts = Counter(container for container, _ in _layers(forward, model_attribute))
    container, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
    return (container, count) if count >= LEAST else None


def _layers(forward: fx.GraphModule, model_attribute: str) -> dict[tuple[str, int], _Layer]:
    """The layers of a forward, by container and number."""
    layers: dict[tuple[str, int], _Layer] = {}
    for node in forward.graph.nodes:
        layer = layer_of(forward_path(node, model_attribute), backward=False) if node.op == "call_function" else None
        if layer is not None:
            layers.setdefault((layer.container, layer.index), _Layer()).add(node)
    return layers


def shortened(forward: fx.GraphModule, model_attribute: str) -> tuple[fx.GraphModule, Run] | None:
    """A copy of a forward without the middle of its longest run of equal layers; None where that spares nothing."""
    layers = _layers(forward, model_attribute)
    tensors = _Tensors(forward)
    runs: list[Run] = []
    for container, numbers in groupby(sorted(layers), key=lambda key: key[0]):
        of_container = {number: layers[container, number] for _, number in numbers}
        runs += _runs(f"{model_attribute}.{container}", of_container, tensors)
    longest = max(runs, key=lambda run: len(run.left_out), default=None)
    if longest is None or not longest.left_out:
        return None
    container = longest.container.removeprefix(f"{model_attribute}.")
    return _without(forward, longest, {n: layers[container, n] for n in range(longest.before, longest.behind)}), longest


def _runs(container: str, layers: Mapping[int, _Layer], tensors: _Tensors) -> Iterator[Run]:
    """The runs of equal layers of a container whose values only the next one takes."""
    keys: dict[int, Any] = {}
    for number, layer in layers.items():
        keys[number] = tuple(_key(f"{container}.{number}.", layer, layers.get(number - 1), tensors))
    first = None
    for number, layer in layers.items():
        is_equal = first is not None and number - 1 in layers and keys[number] == keys[first]
        if not is_equal or not _feeds(layers[number - 1], layer):
            if first is not None:
                yield _run(container, first, number - 1, layers)
            first = number
    if first is not None:
        yield _run(container, first, max(layers), layers)


def _run(container: str, first: int, last: int, layers: Mapping[int, _Layer]) -> Run:
    """What stays: the first layer, whose like the others are; the last two, of which what follows takes the last."""
    numbers = {
        number: [node.args[NUMBER] for node in layers[number].nodes if node.target is RANDOM]
        for number in range(first, last + 1)
        if number in layers
    }
    return Run(container, first, max(first, last - 1), numbers)  # type: ignore[arg-type]


def _feeds(layer: _Layer, following: _Layer) -> bool:
    """Whether nothing but the next layer takes values of a layer, and no autocast region begins or ends in it."""
    users = {user for node in layer.nodes for user in node.users}
    if any(user not in layer.positions and user not in following.positions for user in users):
        return False
    node = layer.nodes[0]
    while node is not following.nodes[-1]:
        if is_boundary(node):
            return False
        node = node.next
    return True


class _Tensors:
    """The parameters and buffers of a forward, and what a layer's key says of them."""

    def __init__(self, forward: nn.Module) -> None:
        self._parameters = dict(forward.named_parameters(remove_duplicate=False))
        self._tensors = self._parameters | dict(forward.named_buffers(remove_duplicate=False))
        self._names = Counter(_memory(tensor) for tensor in self._tensors.values())

    def facts(self, name: str) -> Any:
        """What is equal for tensors that one layer has in place of another's; equal to nothing for shared memory."""
        tensor = self._tensors.get(name)
        if tensor is None or _memory(tensor) is None or self._names[_memory(tensor)] > 1:
            return object()
        return name in self._parameters, tensor.dtype, tensor.shape, tensor.stride(), tensor.requires_grad


def _memory(tensor: torch.Tensor) -> int | None:
    """What tensors that share memory have in common; None for one that a function transform has wrapped."""
    try:
        memory: int = tensor.untyped_storage()._cdata
    except NotImplementedError:
        return None
    return memory


def _key(prefix: str, layer: _Layer, previous: _Layer | None, tensors: _Tensors) -> Iterator[Any]:
    """What equal layers share; `prefix` begins the names of the layer's own tensors."""

    def operand(argument: Any) -> Any:
        match argument:
            case fx.Node() if argument in layer.positions:
                return "own", layer.positions[argument]
            case fx.Node() if previous is not None and argument in previous.positions:
                return "previous", previous.positions[argument]
            case fx.Node(op="get_attr") if str(argument.target).startswith(prefix):
                name = str(argument.target)
                return "tensor", name.removeprefix(prefix), tensors.facts(name)
            case fx.Node():
                return "shared", argument
            case tuple() | list():
                return tuple([operand(item) for item in argument])
            case slice():
                return operand((argument.start, argument.stop, argument.step))
            case float():
                return repr(argument)
        return argument, type(argument)

    for node in layer.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            yield object()
        args = (*node.args[:NUMBER], *node.args[NUMBER + 1 :]) if node.target is RANDOM else node.args
        kwargs = tuple((name, operand(value)) for name, value in node.kwargs.items())
        place = unnumbered_path(forward_path(node, "")), node.meta.get("stack_trace")
        yield node.target, operand(args), kwargs, _layout(node.meta.get("val")), place


def _layout(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if not all(isinstance(size, int) for size in (*value.shape, *value.stride())):
            return object()
        return value.dtype, tuple(value.shape), value.stride(), value.requires_grad
    return tuple([_layout(item) for item in value]) if isinstance(value, (tuple, list)) else value


def _without(forward: fx.GraphModule, run: Run, layers: Mapping[int, _Layer]) -> fx.GraphModule:
    """A copy of the forward without the layers that are left out."""
    left_out = {node for number in run.left_out for node in layers[number].nodes}
    names = tuple(f"{run.container}.{number}." for number in run.left_out)
    copies: dict[fx.Node, fx.Node] = {}
    graph = fx.Graph()
    for node in forward.graph.nodes:
        if node in left_out or (node.op == "get_attr" and str(node.target).startswith(names)):
            continue
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if node is layers[run.before].nodes[-1]:
            last = layers[run.behind - 1].nodes
            copies.update((old, copies[own]) for old, own in zip(last, layers[run.before].nodes, strict=True))
    graph.set_codegen(forward.graph._codegen)
    short = fx.GraphModule(forward, graph)
    for tensors, own in (
        (forward.named_parameters(remove_duplicate=False), dict(short.named_parameters(remove_duplicate=False))),
        (forward.named_buffers(remove_duplicate=False), dict(short.named_buffers(remove_duplicate=False))),
    ):
        for name, tensor in tensors:
            if name not in own and not name.startswith(names):
                _hold(short, name, tensor)
    return short


def _hold(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Register a tensor that no node reads."""
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(leaf, tensor)
    else:
        module.register_buffer(leaf, tensor)
