"""Substitute numbers for the symbols of a symbolic trace, as if it were traced for these sizes.

Nodes that compute sizes become numbers, and every value gets its shape at these sizes. So one trace serves all sizes
for which its guards hold; it costs as much as four or five plain traces.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx._lazy_graph_module import _make_graph_module, _use_lazy_graph_module
from torch.utils import _pytree as pytree

from ..capture.joint import SymbolicGraphs, TracedGraphs
from ..custom_functions.custom_function import Backward, CustomFunction
from .dynamic_dims import CalledSize
from .size_guards import NotSymbolic

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


def graphs_at(traced: SymbolicGraphs, sizes: Mapping[str, CalledSize], values: Mapping[str, int]) -> TracedGraphs:
    """Copies of both graphs for `values` of the named sizes; the trace is not changed.

    Raises NotSymbolic if a number in them depends on more than the named sizes.
    """
    numbers = _Substitution(_symbols(traced, sizes, values))
    graphs = traced.graphs
    with _use_lazy_graph_module(True):  # their Python code is never asked for
        forward, joint = _copied(graphs.forward, numbers), _copied(graphs.joint, numbers)
    return TracedGraphs(forward, joint, dict(graphs.constants), graphs.value_reads)


def _symbols(traced: SymbolicGraphs, sizes: Mapping[str, CalledSize], values: Mapping[str, int]) -> dict[Any, Any]:
    values_by_symbol: dict[Any, Any] = {}
    for name, named in sizes.items():
        for index, dim in named.places:
            extent = traced.inputs[index].shape[dim]
            if isinstance(extent, torch.SymInt) and isinstance(extent.node.expr, sympy.Symbol):
                values_by_symbol[extent.node.expr] = sympy.Integer(values[name])
    return values_by_symbol


class _Substitution:
    """Substitutes numbers for symbols, in values and shapes."""

    def __init__(self, symbols: Mapping[Any, Any]) -> None:
        self._symbols = symbols
        self._known: dict[Any, Any] = {}
        self._mode = FakeTensorMode()
        self._tensors: dict[Any, torch.Tensor] = {}

    def of(self, value: Any) -> Any:
        """A tree with symbols and symbolic shapes substituted."""
        return pytree.tree_map(self.leaf, value)

    def leaf(self, value: Any) -> Any:
        """A symbol as a number, a tensor with substituted shape, anything else unchanged."""
        if isinstance(value, _SYMBOLIC):
            return self._number(value)
        return self._tensor(value) if isinstance(value, torch.Tensor) else value

    def _number(self, value: Any) -> Any:
        expression = value.node.expr
        if expression not in self._known:
            substituted = expression.xreplace(self._symbols)
            if substituted.free_symbols:
                raise NotSymbolic(f"the model computes with {substituted}, which is not made of named sizes")
            to_number = bool if isinstance(value, torch.SymBool) else int if isinstance(value, torch.SymInt) else float
            self._known[expression] = to_number(substituted)
        return self._known[expression]

    def _tensor(self, value: torch.Tensor) -> torch.Tensor:
        shape, strides = (tuple([self.leaf(n) for n in symbolic]) for symbolic in (value.shape, value.stride()))
        key = shape, strides, value.dtype, value.device
        if key not in self._tensors:
            with self._mode, torch.no_grad():
                self._tensors[key] = torch.empty_strided(shape, strides, dtype=value.dtype, device=value.device)
        return self._tensors[key]


def drop_whole_slices(module: fx.GraphModule) -> None:
    """Drop slices that are the identity at all sizes, as torch does in a trace with numbers."""
    for node in list(module.graph.nodes):
        if node.target in _SLICES and _shape(node) == _shape(node.args[0]) and not _has_step(node):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)


_SLICES = (torch.ops.aten.slice.Tensor, torch.ops.aten.slice_backward.default)


def _has_step(node: fx.Node) -> bool:
    """Whether a slice has a step other than 1."""
    step_index = 4 if node.target is torch.ops.aten.slice.Tensor else 5
    return len(node.args) > step_index and bool(node.args[step_index] != 1)


def _shape(node: Any) -> list[Any]:
    return [n.node.expr if isinstance(n, torch.SymInt) else n for n in node.meta["val"].shape]


def _copied(module: fx.GraphModule, numbers: _Substitution) -> fx.GraphModule:
    """A copy of the graph; parameters, buffers and constants are shared, custom functions are copied."""
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
        if node.op == "call_module":
            copy.args = _values(copy.args)
        copies[node] = copy
    copied = _make_graph_module(module, graph)
    for node in graph.find_nodes(op="call_module"):
        function = module.get_submodule(str(node.target))
        assert isinstance(function, CustomFunction), "no other module is called"
        copied.add_submodule(str(node.target), _function_at(function, numbers))
    return copied


def _function_at(function: CustomFunction, numbers: _Substitution) -> CustomFunction:
    """A custom function at these sizes. Its graphs take and save no sizes, as those are numbers in them."""
    forward = _copied(function.forward_graph, numbers)
    output = forward.graph.output_node()
    results, saved = cast(tuple[Any, Any], output.args[0])
    output.args = ((results, list(_values(saved))),)
    backwards = [Backward(each.present, _copied(each.graph, numbers)) for each in function.backwards]
    return CustomFunction(function.signature, forward, backwards)


def _values(arguments: Any) -> tuple[fx.Node, ...]:
    """The arguments that are values."""
    return tuple(argument for argument in arguments if isinstance(argument, fx.Node))
