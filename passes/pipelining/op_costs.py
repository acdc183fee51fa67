"""Rough costs of operations, for balancing stages: not for predicting anything.

Time is in bytes moved: an operation takes as long as its memory traffic, or as its floating-point operations at
`FLOPS_PER_BYTE`, whichever is more. Floating-point operations are counted by torch's own formulas.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from ...ir.bindings import Value, mlir
from ...ir.module import Module
from ...ir.types import element_bytes, from_mlir, is_tensor
from ..graph import Graph, Node

FLOPS_PER_BYTE = 100.0
"""Floating-point operations in the time in which a byte is moved: between a CPU's and that of today's accelerators."""


def bytes_of(value: Value) -> int:
    """The memory of a value on one rank; 0 for what is no tensor."""
    return element_bytes(from_mlir(value.type)) if is_tensor(value.type) else 0


class OpCosts:
    """Costs of the nodes of a module; a function's are counted once."""

    def __init__(self, module: Module) -> None:
        self._functions = module.functions()
        self._known: dict[str, float] = {}

    def time(self, node: Node) -> float:
        """The forward time of a node, in bytes moved."""
        name = node.callee
        if name is None:
            traffic = sum(map(bytes_of, (*node.operands, *node.values)))
            return max(float(traffic), flops(node) / FLOPS_PER_BYTE)
        if name not in self._known:
            self._known[name] = sum(self.time(each) for each in Graph.of(self._functions[name]).nodes)
        return self._known[name]


def flops(node: Node) -> float:
    """The floating-point operations of one operation; 0 where torch has no formula for it."""
    packet = _formulas().get(node.name)
    if packet is None or node.call is None:
        return 0.0
    args = tree_map(_meta, list(node.call.args), is_leaf=_is_value)
    kwargs = {key: tree_map(_meta, value, is_leaf=_is_value) for key, value in node.call.kwargs.items()}
    made = [_meta(v) for v in node.values]
    return float(packet(*args, **kwargs, out_val=made[0] if len(made) == 1 else tuple(made)))


@cache
def _formulas() -> dict[str, Any]:
    """Torch's formulas by our names of operations."""
    found = {}
    for packet, formula in flop_registry.items():
        if isinstance(packet, torch._ops.OpOverloadPacket):
            namespace, name = packet._qualified_op_name.split("::")
            overloads = packet.overloads()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            found.update({f"{namespace}.{name}.{overload}": formula for overload in overloads})
    return found


def _is_value(argument: Any) -> bool:
    return isinstance(argument, mlir.Value)


def _meta(argument: Any) -> Any:
    """A tensor without memory in place of a value."""
    if not _is_value(argument) or not is_tensor(argument.type):
        return argument
    type_ = from_mlir(argument.type)
    made: Tensor = torch.empty(type_.shape, dtype=type_.dtype, device="meta")
    return made
