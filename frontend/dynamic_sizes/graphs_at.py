"""Graphs that were traced with symbols, with numbers in place of these: as if traced for sizes of their own.

Nodes that compute with sizes become the numbers they compute, and every value the shape it has at the sizes. So one
trace serves all sizes for which its conditions hold, and costs as much as four or five plain ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx._lazy_graph_module import _make_graph_module, _use_lazy_graph_module
from torch.utils import _pytree as pytree

from ..capture.joint import SymbolicGraphs, TracedGraphs
from .dynamic_dims import CalledSize
from .size_guards import NotSymbolic

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


def graphs_at(traced: SymbolicGraphs, sizes: Mapping[str, CalledSize], values: Mapping[str, int]) -> TracedGraphs:
    """Copies of both graphs for `values` of all of the named sizes; the trace stays as it is.

    Raises NotSymbolic where a number in them follows from more than these sizes.
    """
    numbers = _Numbers(_symbols(traced, sizes, values))
    graphs = traced.graphs
    with _use_lazy_graph_module(True):  # their Python code is never asked for
        forward, joint = _copied(graphs.forward, numbers), _copied(graphs.joint, numbers)
    return TracedGraphs(forward, joint, dict(graphs.constants), graphs.read_out)


def _symbols(traced: SymbolicGraphs, sizes: Mapping[str, CalledSize], values: Mapping[str, int]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for name, each in sizes.items():
        for at, dim in each.places:
            size = traced.inputs[at].shape[dim]
            if isinstance(size, torch.SymInt) and isinstance(size.node.expr, sympy.Symbol):
                found[size.node.expr] = sympy.Integer(values[name])
    return found


class _Numbers:
    """What symbols are at some sizes."""

    def __init__(self, symbols: Mapping[Any, Any]) -> None:
        self._symbols = symbols
        self._known: dict[Any, Any] = {}
        self._mode = FakeTensorMode()
        self._tensors: dict[Any, torch.Tensor] = {}

    def of(self, value: Any) -> Any:
        """A tree with numbers for symbols, and with tensors that have such shapes."""
        return pytree.tree_map(self.leaf, value)

    def leaf(self, value: Any) -> Any:
        """The number that a symbol is; a tensor with such a shape; anything else as it is."""
        if isinstance(value, _SYMBOLIC):
            return self._number(value)
        return self._tensor(value) if isinstance(value, torch.Tensor) else value

    def _number(self, value: Any) -> Any:
        expression = value.node.expr
        if expression not in self._known:
            found = expression.xreplace(self._symbols)
            if found.free_symbols:
                raise NotSymbolic(f"the model computes with {found}, which is not made of named sizes")
            made = bool if isinstance(value, torch.SymBool) else int if isinstance(value, torch.SymInt) else float
            self._known[expression] = made(found)
        return self._known[expression]

    def _tensor(self, value: torch.Tensor) -> torch.Tensor:
        shape, strides = (tuple([self.leaf(n) for n in each]) for each in (value.shape, value.stride()))
        key = shape, strides, value.dtype, value.device
        if key not in self._tensors:
            with self._mode, torch.no_grad():
                self._tensors[key] = torch.empty_strided(shape, strides, dtype=value.dtype, device=value.device)
        return self._tensors[key]


def drop_whole_slices(module: fx.GraphModule) -> None:
    """Drop slices that take everything at all sizes: with numbers torch leaves out those that a forward writes `:`."""
    for node in list(module.graph.nodes):
        if node.target in _SLICES and _shape(node) == _shape(node.args[0]) and not _steps(node):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)


_SLICES = (torch.ops.aten.slice.Tensor, torch.ops.aten.slice_backward.default)


def _steps(node: fx.Node) -> bool:
    """Whether a slice leaves out elements in between."""
    at = 4 if node.target is torch.ops.aten.slice.Tensor else 5
    return len(node.args) > at and bool(node.args[at] != 1)


def _shape(node: Any) -> list[Any]:
    return [n.node.expr if isinstance(n, torch.SymInt) else n for n in node.meta["val"].shape]


def _copied(module: fx.GraphModule, numbers: _Numbers) -> fx.GraphModule:
    """A graph of its own; parameters, buffers and constants are the same."""
    graph = fx.Graph()
    graph.set_codegen(module.graph._codegen)
    copies: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, _SYMBOLIC):
            copies[node] = numbers.of(value)
            continue
        copy = graph.node_copy(node, copies.__getitem__)
        copy.args, copy.kwargs = fx.node.map_aggregate((copy.args, copy.kwargs), numbers.leaf)
        if value is not None:
            copy.meta["val"] = numbers.of(value)
        copies[node] = copy
    return _make_graph_module(module, graph)
