"""Cut custom autograd functions out of a traced forward.

Before                                       After
  %a = function_value(%x)                      %y = call_module custom_function_0(%x)
  %o = sign(%a)
  %t = function_value(%o)
  %g = mul(%t, 3)
  %y = function_call([%x], [%a], [%o], [%t], [%g], [0], "Sign")

What the functions read from outside, such as buffers, becomes a further operand, without a gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx._lazy_graph_module import _make_graph_module

from ..captured import CaptureError
from ..graph.regions import has_effect
from ..metadata import source_span
from .custom_function import Backward, CustomFunction, Signature
from .linearity import is_linear
from .markers import CALL, VALUE

_PREFIX = "custom_function_"


def extract_custom_functions(module: fx.GraphModule) -> None:
    """Replace each marked function of a forward before autograd by a call of a module.

    Errors: E0227 for a value that leaves a function in another way than as its output, and for a backward that writes
    to a tensor of the model.
    """
    calls = module.graph.find_nodes(op="call_function", target=CALL)
    for index, call in enumerate(calls):
        _extract(module, call, f"{_PREFIX}{index}")
    if calls:
        module.recompile()


def nonlinear_functions(module: fx.GraphModule) -> tuple[str, ...]:
    """The names of a forward's custom functions whose backward is not linear in the gradient that it gets."""
    functions = [each for each in module.children() if isinstance(each, CustomFunction)]
    return tuple(dict.fromkeys(f.signature.name for f in functions if not all(map(is_linear, f.backwards))))


@dataclass(frozen=True)
class _Backward:
    """The nodes of one backward."""

    tangents: list[fx.Node | None]
    gradients: list[fx.Node | None]
    nodes: list[fx.Node]

    @property
    def given(self) -> list[fx.Node]:
        """The tangents that are present."""
        return [tangent for tangent in self.tangents if tangent is not None]


@dataclass(frozen=True)
class _Region:
    """The nodes of one function in the graph, up to its call."""

    call: fx.Node
    values: list[fx.Node]
    """Stand for the inputs."""
    forward: list[fx.Node]
    backwards: list[_Backward]
    nodes: list[fx.Node]
    """All of them, in order."""


def _extract(module: fx.GraphModule, call: fx.Node, name: str) -> None:
    inputs, _, outputs, _, _, differentiable, function_name = _arguments(call)
    region = _region(call)
    own = set(region.nodes)
    _refuse_leaks(region, own, function_name)
    _refuse_writes(region, function_name)
    outside = list(dict.fromkeys(n for node in region.nodes if node.target is not VALUE for n in _outside(node, own)))
    saved = list(dict.fromkeys(node for backward in region.backwards for node in _saved(backward)))
    forward = _graph_of(region.forward, [*region.values, *outside], (outputs, saved))
    backwards = [
        Backward(
            tuple(tangent is not None for tangent in backward.tangents),
            _graph_of(backward.nodes, [*saved, *backward.given], backward.gradients),
        )
        for backward in region.backwards
    ]
    signature = Signature(function_name, len(inputs), len(outputs), tuple(differentiable))
    module.add_submodule(name, CustomFunction(signature, forward, backwards))
    with call.graph.inserting_before(call):
        replacement = call.graph.call_module(name, (*inputs, *outside))
    replacement.meta = dict(call.meta)
    call.replace_all_uses_with(replacement)
    for node in (call, *reversed(region.nodes)):
        call.graph.erase_node(node)


def _arguments(call: fx.Node) -> tuple[Any, ...]:
    """The arguments of a mark, lists as lists."""
    return tuple(list(argument) if isinstance(argument, (list, tuple)) else argument for argument in call.args)


def _region(call: fx.Node) -> _Region:
    """The region that ends at a call: all nodes since the first value that stands for an input."""
    inputs, values, _, tangents, gradients, differentiable, _ = _arguments(call)
    nodes: list[fx.Node] = []
    missing = set(values)
    node = call.prev
    while missing:
        if node.op == "call_function":
            nodes.insert(0, node)
        missing.discard(node)
        node = node.prev
    computed = [n for n in nodes if n not in values]
    backwards: list[_Backward] = []
    for index in reversed(range(len(tangents) // max(len(differentiable), 1))):
        given = tangents[index * len(differentiable) :][: len(differentiable)]
        returned = gradients[index * len(inputs) :][: len(inputs)]
        begin = min(computed.index(tangent) for tangent in given if tangent is not None)
        backward = [n for n in computed[begin:] if n not in given]
        backwards.insert(0, _Backward(given, returned, backward))
        computed = computed[:begin]
    return _Region(call, values, computed, backwards, nodes)


def _outside(node: fx.Node, own: set[fx.Node]) -> list[fx.Node]:
    return [operand for operand in node.all_input_nodes if operand not in own]


def _saved(backward: _Backward) -> list[fx.Node]:
    """What a backward reads of the forward and from outside, in order of first use."""
    computed = {*backward.nodes, *backward.given}
    read = (operand for node in backward.nodes for operand in node.all_input_nodes)
    returned = (gradient for gradient in backward.gradients if gradient is not None)
    return [node for node in (*read, *returned) if node not in computed]


def _graph_of(nodes: Iterable[fx.Node], arguments: Sequence[fx.Node], results: Any) -> fx.GraphModule:
    """A graph of copies of `nodes`, which takes `arguments` and returns `results`."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for argument in arguments:
        copies[argument] = graph.placeholder(argument.name)
        copies[argument].meta = dict(argument.meta)
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(fx.map_arg(results, copies.__getitem__))
    graph.eliminate_dead_code(is_impure_node=has_effect)
    return _make_graph_module(nn.Module(), graph)


def _refuse_leaks(region: _Region, own: set[fx.Node], name: str) -> None:
    for node in region.nodes:
        leaked = [user for user in node.users if user not in own and user is not region.call]
        if leaked:
            raise CaptureError(
                "E0227",
                f'a value that the custom autograd function "{name}" computes is used outside of it',
                span=source_span(leaked[0]) or source_span(node),
                expected="values that leave it as its outputs",
                help="return the value from forward, and mark it with ctx.mark_non_differentiable",
            )


def _refuse_writes(region: _Region, name: str) -> None:
    """Refuse a forward that changes its inputs, and a backward that changes what it did not compute."""
    for part, nodes in (("forward", region.forward), *(("backward", each.nodes) for each in region.backwards)):
        for node in nodes:
            target, written = node.target, node.args[0] if node.args else None
            if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
                continue
            if written in region.values or (part == "backward" and written not in nodes):
                raise CaptureError(
                    "E0227",
                    f'the {part} of the custom autograd function "{name}" changes a tensor in place that it is given',
                    span=source_span(node),
                    expected="changes of tensors that it computed",
                    help="work on a copy of it, .clone()",
                )
