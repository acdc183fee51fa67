"""Inline the regions that export keeps as subgraphs: `torch.no_grad`, `torch.enable_grad`, `torch.autocast`.

Before                                              After
  %r = wrap_with_set_grad_enabled(False, @body, %x)   %d = aten.detach(%x)
  %y = getitem %r, 0                                  ... body on %d ...

A body under no_grad reads its arguments through `aten.detach`, so that the flat graph has the same gradients under
autograd; detach shares memory, so in-place updates of buffers still work. A body under autocast is between calls that
enter and leave the region (`autocast.py`).
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from ..captured import CaptureError
from ..metadata import source_span
from . import autocast

_SET_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST = torch.ops.higher_order.wrap_with_autocast
_ASSERTIONS = (
    torch.ops.aten._assert_tensor_metadata.default,
    torch.ops.aten._assert_async.msg,
    torch.ops.aten._assert_scalar.default,
    torch.ops.aten.sym_constrain_range_for_size.default,
    torch.ops.aten.sym_constrain_range.default,
)


def inline_regions(module: fx.GraphModule) -> None:
    """Replace every region node in `module.graph` by the nodes of its body, recursively.

    Errors: E0223 for a region of autocast on another device than the CPU.
    """
    regions = [node for node in module.graph.nodes if node.target in (_SET_GRAD, _AUTOCAST)]
    for node in regions:
        _inline(module.graph, module, node)
    if regions:
        module.graph.eliminate_dead_code(is_impure_node=_has_effect)
        module.recompile()


def drop_assertions(graph: fx.Graph) -> None:
    """Remove assertions, which tracing inserts."""
    for node in reversed(graph.nodes):
        if node.op == "call_function" and node.target in _ASSERTIONS and not node.users:
            graph.erase_node(node)


def _inline(graph: fx.Graph, owner: fx.GraphModule, node: fx.Node) -> None:
    body, arguments, detached = _region(owner, node)
    values: dict[fx.Node, Any] = {}
    placeholders = [inner for inner in body.graph.nodes if inner.op == "placeholder"]
    with graph.inserting_before(node):
        for inner, argument in zip(placeholders, arguments, strict=True):
            values[inner] = _detached(graph, argument) if detached else argument
        results = _copy_region(graph, body, node, values)
    _replace_results(graph, node, results)


def _copy_region(graph: fx.Graph, body: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """Copy the body, between autocast calls if it is an autocast region."""
    if node.target is not _AUTOCAST:
        return _copy_body(graph, body, values)
    dtype, enabled = node.args[1:3]
    region = graph.call_function(autocast.enter, (dtype or torch.bfloat16, enabled))
    results = _copy_body(graph, body, values)
    graph.call_function(autocast.leave, (region,))
    return results


def _copy_body(graph: fx.Graph, body: fx.GraphModule, values: dict[fx.Node, Any]) -> Any:
    for inner in body.graph.nodes:
        if inner.op == "output":
            return fx.map_arg(inner.args[0], lambda n: values[n])
        if inner.op == "placeholder":
            continue
        if inner.op == "get_attr":
            values[inner] = _Body(getattr(body, inner.target))
            continue
        if inner.target in (_SET_GRAD, _AUTOCAST):
            values[inner] = _copy_nested(graph, body, inner, values)
            continue
        if inner.target is operator.getitem and not isinstance(values[inner.args[0]], fx.Node):
            values[inner] = values[inner.args[0]][inner.args[1]]
            continue
        values[inner] = graph.node_copy(inner, lambda n: values[n])
    raise AssertionError("a graph without an output node")


def _copy_nested(graph: fx.Graph, body: fx.GraphModule, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    inner_body, arguments, detached = _region(body, node)
    nested: dict[fx.Node, Any] = {}
    placeholders = [inner for inner in inner_body.graph.nodes if inner.op == "placeholder"]
    for inner, argument in zip(placeholders, arguments, strict=True):
        value = values[argument] if isinstance(argument, fx.Node) else argument
        nested[inner] = _detached(graph, value) if detached else value
    return _copy_region(graph, inner_body, node, nested)


class _Body:
    """Stands for a nested body while its region is copied."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module


def _region(owner: fx.GraphModule, node: fx.Node) -> tuple[fx.GraphModule, tuple[Any, ...], bool]:
    """The body of a region, its arguments, and whether they are detached."""
    elsewhere = None
    if node.target is _SET_GRAD:
        enabled, reference, *arguments = node.args
        detached = not enabled
    else:
        device, _dtype, casting, _cache, reference, *arguments = node.args
        detached, elsewhere = False, device if casting and device != "cpu" else None
    assert isinstance(reference, fx.Node) and isinstance(reference.target, str)
    body = owner.get_submodule(reference.target)
    assert isinstance(body, fx.GraphModule)
    if elsewhere is not None:
        raise CaptureError(
            "E0223",
            f'the forward enters an autocast region for "{elsewhere}", but models are captured on the CPU',
            span=next((span for span in map(source_span, body.graph.nodes) if span), None),
            expected="the device of the tensors in it",
            help="write torch.autocast(x.device.type, dtype), with a tensor x of the model's",
        )
    return body, tuple(arguments), detached


def _detached(graph: fx.Graph, value: Any) -> Any:
    """`value` detached; a value that never has a gradient (buffer, integer, constant) is unchanged."""
    if not isinstance(value, fx.Node) or not _may_require_grad(value):
        return value
    node = graph.call_function(torch.ops.aten.detach.default, (value,))
    node.meta.update(value.meta)
    return node


def _may_require_grad(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor) and not (value.is_floating_point() or value.is_complex()):
        return False
    if node.op == "get_attr" and node.graph.owning_module is not None and isinstance(node.target, str):
        owner, _, leaf = node.target.rpartition(".")
        return leaf in node.graph.owning_module.get_submodule(owner)._parameters
    return node.op != "placeholder"


def _replace_results(graph: fx.Graph, node: fx.Node, results: Any) -> None:
    for user in list(node.users):
        if user.target is not operator.getitem:
            raise AssertionError(f"a region's result is used whole by {user.format_node()}")
        user.replace_all_uses_with(results[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(node)


def _has_effect(node: fx.Node) -> bool:
    """Whether a node must stay without users: an in-place op or an autocast call."""
    if node.op in ("placeholder", "output") or autocast.is_boundary(node):
        return True
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
