"""The bytes that live from the forward to the backward: each piece of memory once, views with what they view."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from ...costs.compute import bytes_of
from ...ir.bindings import Value, mlir
from ...ir.module import Module, entry, terminator
from ...ir.types import from_mlir, is_tensor
from ..graph import Graph, Node
from ..normalize.idioms.bodies import LAYOUTS

Memory = int
"""The number of a piece of memory, that a value was allocated, inside the call that allocated it."""


def behind(graph: Graph) -> set[Node]:
    """The nodes of the backward: those located there, and those that depend on a tangent or on such a node."""
    tangents = {value for value, record in graph.arguments if record.get("kind") == "tangent"}
    found: set[Node] = set()
    made = set(tangents)
    for node in graph.nodes:
        if node.origin.backward or any(value in made for value in node.operands):
            found.add(node)
            made.update(node.values)
    return found


def kept_bytes(module: Module) -> int:
    """The bytes that main's forward makes and its backward reads, on one rank; arguments of main do not count."""
    functions = module.functions()
    memories = Memories(functions)
    graph = Graph.of(functions["main"])
    found = memories.of("main")
    backward = behind(graph)
    forward_made = {v for node in graph.nodes if node not in backward for v in node.values}
    read = {v for node in backward for v in node.operands if v in forward_made}
    return sum({found[v]: memories.bytes[found[v]] for v in read if found[v] in memories.bytes}.values())


class Memories:
    """Which memory each value of each function lies in."""

    def __init__(self, functions: Mapping[str, Any]) -> None:
        self._functions = functions
        self._known: dict[str, dict[Value, Memory]] = {}
        self._graphs: dict[str, Graph] = {}
        self._numbers = count()
        self.bytes: dict[Memory, int] = {}
        """Of what operations allocate; arguments of `main` have no entry."""

    def of(self, name: str) -> dict[Value, Memory]:
        """By value of a function: its memory."""
        if name not in self._known:
            self._known[name] = self._walk(self.graph(name))
        return self._known[name]

    def graph(self, name: str) -> Graph:
        """The nodes of a function, in the order in which they stood when it was first asked for."""
        if name not in self._graphs:
            self._graphs[name] = Graph.of(self._functions[name])
        return self._graphs[name]

    def _walk(self, graph: Graph) -> dict[Value, Memory]:
        found: dict[Value, Memory] = {v: next(self._numbers) for v in entry(graph.function).arguments}
        layouts: dict[Value, Tensor] = {}
        for node in graph.nodes:
            if node.callee is not None:
                self._call(node, found)
                continue
            shared = _shared(node, layouts)
            for value in node.values:
                if value in shared:
                    found[value] = found[shared[value]]
                else:
                    found[value] = next(self._numbers)
                    self.bytes[found[value]] = bytes_of(value)
        return found

    def _call(self, node: Node, found: dict[Value, Memory]) -> None:
        function = self._functions[str(node.callee)]
        inner = self.of(str(node.callee))
        operands = {inner[a]: found[v] for a, v in zip(entry(function).arguments, node.operands, strict=True)}
        for value, returned in zip(node.values, terminator(function).operands, strict=True):
            memory = inner[returned]
            if memory not in operands:
                operands[memory] = next(self._numbers)
                self.bytes[operands[memory]] = self.bytes[memory]
            found[value] = operands[memory]


def _shared(node: Node, layouts: dict[Value, Tensor]) -> dict[Value, Value]:
    """By result that is a view: the operand whose memory it shares; also notes the layouts of the results."""
    assert node.call is not None
    operands = {v: layouts[v] if v in layouts else _contiguous(v) for v in node.operands if is_tensor(v.type)}
    made = _run(node, operands)
    owners = {tensor.untyped_storage()._cdata: v for v, tensor in reversed(operands.items())}
    shared = {}
    for value, tensor in zip(node.values, made, strict=False):
        if isinstance(tensor, Tensor) and is_tensor(value.type) and tuple(tensor.shape) == from_mlir(value.type).shape:
            layouts[value] = tensor
            if tensor.untyped_storage()._cdata in owners:
                shared[value] = owners[tensor.untyped_storage()._cdata]
    return shared


def _run(node: Node, operands: Mapping[Value, Tensor]) -> list[Any]:
    """The results of an operation of torch, or an idiom, on tensors without memory; none where it has no such form."""
    assert node.call is not None
    target = _function(node.name)
    if target is None or not operands:
        return []
    args, kwargs = tree_map(
        lambda each: operands.get(each, each) if isinstance(each, mlir.Value) else each,
        (list(node.call.args), dict(node.call.kwargs)),
        is_leaf=lambda each: isinstance(each, mlir.Value),
    )
    try:
        with torch.no_grad():
            return list(tree_flatten(target(*args, **kwargs))[0])
    except (RuntimeError, NotImplementedError, TypeError):
        return []


def _function(name: str) -> Callable[..., Any] | None:
    """The function of an operation; None where it has none."""
    if name in LAYOUTS:
        return LAYOUTS[name]
    dialect, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    found: Callable[..., Any] | None = getattr(getattr(torch.ops.aten, packet), overload) if dialect == "aten" else None
    return found


def _contiguous(value: Value) -> Tensor:
    type_ = from_mlir(value.type)
    return torch.empty(type_.shape, dtype=type_.dtype, device="meta")
