"""Write out the regions of `torch.no_grad`, `torch.enable_grad` and `torch.autocast`, however they are nested.

Before                                              After
  _enter_autocast("cpu", bfloat16, True, True)        %a = enter(bfloat16, True)
  _set_grad_enabled(False)                            %d = aten.detach(%x)
  %y = aten.sigmoid(%x)                               %y = aten.sigmoid(%d)
  _set_grad_enabled(True)
  _exit_autocast(%enter)                              leave(%a)

Export would turn regions into subgraphs, and loses a `no_grad` inside an `autocast`: it cuts the autocast at the
`no_grad`, and then takes the piece for one of autocast only. So `regions_in_line` keeps the calls in the flat graph.

Ops under no_grad read values from outside through `aten.detach`, so that the flat graph has the same gradients under
autograd; detach shares memory, so in-place updates of buffers still work. What an op returns as it got it keeps its
gradient. Ops under autocast stand between calls that
enter and leave the region (`autocast.py`).
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch._export.passes import replace_autocast_with_hop_pass as autocast_pass
from torch._export.passes import replace_set_grad_with_hop_pass as set_grad_pass
from torch._subclasses.fake_tensor import FakeTensor

from ...diagnostics import Span
from ..captured import CaptureError
from ..metadata import source_span
from . import autocast

_SET_GRAD = torch._C._set_grad_enabled
_ENTER_AUTOCAST = torch.amp.autocast_mode._enter_autocast
_EXIT_AUTOCAST = torch.amp.autocast_mode._exit_autocast
_ASSERTIONS = (
    torch.ops.aten._assert_tensor_metadata.default,
    torch.ops.aten._assert_async.msg,
    torch.ops.aten._assert_scalar.default,
    torch.ops.aten.sym_constrain_range_for_size.default,
    torch.ops.aten.sym_constrain_range.default,
)


@contextmanager
def regions_in_line() -> Iterator[None]:
    """Inside, export leaves the calls that begin and end regions in the graph, in place of subgraphs."""

    def unchanged(gm: fx.GraphModule, graph_signature: Any) -> tuple[fx.GraphModule, Any]:
        return gm, graph_signature

    replace_autocast = autocast_pass.replace_autocast_with_hop_pass
    replace_set_grad = set_grad_pass.replace_set_grad_with_hop_pass
    autocast_pass.replace_autocast_with_hop_pass = unchanged
    set_grad_pass.replace_set_grad_with_hop_pass = unchanged
    try:
        yield
    finally:
        autocast_pass.replace_autocast_with_hop_pass = replace_autocast
        set_grad_pass.replace_set_grad_with_hop_pass = replace_set_grad


def write_out_regions(module: fx.GraphModule) -> None:
    """Replace the calls that begin and end regions in `module.graph` by what they do to the ops between them.

    Errors: E0223 for a region of autocast on another device than the CPU.
    """
    boundaries = [node for node in module.graph.nodes if _is_boundary(node)]
    if not boundaries:
        return
    if torch.is_grad_enabled():
        _detach_operands(module.graph)
    _replace_autocast(module.graph, boundaries)
    for node in reversed(boundaries):
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code(is_impure_node=has_effect)
    module.recompile()


def drop_assertions(graph: fx.Graph) -> None:
    """Remove assertions, which tracing inserts."""
    for node in reversed(graph.nodes):
        if node.op == "call_function" and node.target in _ASSERTIONS and not node.users:
            graph.erase_node(node)


def _detach_operands(graph: fx.Graph) -> None:
    """Let the ops under no_grad read each value from outside through one detach, where the region begins."""
    begin: fx.Node | None = None
    values: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if node.target is _SET_GRAD and node.args[0]:
            begin, values = None, {}
        elif node.target is _SET_GRAD:
            begin = begin or node
        elif begin is not None and node.target is operator.getitem:
            values[node] = node if values.get(node.args[0]) is node.args[0] else _detached(node, node.next)
        elif begin is not None and node.op == "call_function" and not _is_boundary(node):
            operand = _returned_operand(node)
            _read_detached(node, begin, values)
            if operand is not None and _may_require_grad(operand):
                node.replace_all_uses_with(operand)
                values[operand] = node


def _read_detached(node: fx.Node, begin: fx.Node, values: dict[fx.Node, fx.Node]) -> None:
    """Replace the operands of an op under no_grad. `values` has what the region reads in place of each value."""
    for operand in node.all_input_nodes:
        if operand not in values:
            values[operand] = _detached(operand, begin) if _may_require_grad(operand) else operand
    node.args = fx.map_arg(node.args, lambda operand: values[operand])
    node.kwargs = fx.map_arg(node.kwargs, lambda operand: values[operand])
    values[node] = node


def _returned_operand(node: fx.Node) -> fx.Node | None:
    """The operand that the op returns as it is, such as `h` of `h.mul_(2)`, or of `h.float()` if it is float32.

    It keeps its gradient, while torch's trace takes it for a result of this op from here on.
    """
    op, operand = node.target, node.args[0] if node.args else None
    if not isinstance(op, torch._ops.OpOverload) or not isinstance(operand, fx.Node) or len(op._schema.returns) != 1:
        return None
    first, result = op._schema.arguments[0].alias_info, op._schema.returns[0].alias_info
    if first is None or result is None or first.before_set != result.before_set:
        return None
    return operand if result.is_write or _returns_first(op, node) else None


def _returns_first(op: torch._ops.OpOverload, node: fx.Node) -> bool:
    """Whether an op that may return a view returns its first operand itself: known by calling it without memory."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda operand: operand.meta.get("val"))
    if not isinstance(args[0], FakeTensor):
        return False
    with args[0].fake_mode:
        return op(*args, **kwargs) is args[0]


def _detached(value: fx.Node, place: fx.Node) -> fx.Node:
    with value.graph.inserting_before(place):
        node = value.graph.call_function(torch.ops.aten.detach.default, (value,))
    node.meta.update(value.meta)
    return node


def _may_require_grad(node: fx.Node) -> bool:
    """False for what never has a gradient: buffers, constants, integers, sizes."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not (value.is_floating_point() or value.is_complex()):
        return False
    if node.op == "get_attr" and node.graph.owning_module is not None and isinstance(node.target, str):
        owner, _, leaf = node.target.rpartition(".")
        return leaf in node.graph.owning_module.get_submodule(owner)._parameters
    return node.op != "placeholder" or value.requires_grad


def _replace_autocast(graph: fx.Graph, boundaries: Sequence[fx.Node]) -> None:
    """Put our calls beside torch's. Torch's end of a region names its begin, and so does ours."""
    begun: dict[fx.Node, fx.Node] = {}
    for index, node in enumerate(boundaries):
        with graph.inserting_before(node):
            if node.target is _ENTER_AUTOCAST:
                device, dtype, enabled, _cache = node.args
                if enabled and device != "cpu":
                    raise _elsewhere(device, _first_span(node, boundaries[index + 1 :]))
                begun[node] = graph.call_function(autocast.enter, (dtype or torch.bfloat16, enabled))
            elif node.target is _EXIT_AUTOCAST:
                [begin] = node.all_input_nodes
                graph.call_function(autocast.leave, (begun[begin],))


def _elsewhere(device: object, span: Span | None) -> CaptureError:
    return CaptureError(
        "E0223",
        f'the forward enters an autocast region for "{device}", but models are captured on the CPU',
        span=span,
        expected="the device of the tensors in it",
        help="write torch.autocast(x.device.type, dtype), with a tensor x of the model's",
    )


def _first_span(begin: fx.Node, later: Sequence[fx.Node]) -> Span | None:
    """The place of the first op of the region that begins there."""
    end = next((node for node in later if begin in node.all_input_nodes), None)
    inside = itertools.takewhile(
        lambda node: node is not end, itertools.dropwhile(lambda n: n is not begin, begin.graph.nodes)
    )
    return next((span for span in map(source_span, inside) if span), None)


def _is_boundary(node: fx.Node) -> bool:
    return node.target in (_SET_GRAD, _ENTER_AUTOCAST, _EXIT_AUTOCAST)


def has_effect(node: fx.Node) -> bool:
    """Whether a node must stay without users: an in-place op or an autocast call."""
    if node.op in ("placeholder", "output") or autocast.is_boundary(node):
        return True
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
