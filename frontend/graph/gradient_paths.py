"""Which values of a graph before autograd may require a gradient."""

from __future__ import annotations

import torch
from torch import fx

from .random_op import RANDOM

_NO_GRADIENT = (torch.ops.aten.detach.default, RANDOM)


def may_require_gradient(graph: fx.Graph) -> frozenset[fx.Node]:
    """The nodes that may depend on a trained parameter or input; none while gradients are switched off.

    Export keeps `requires_grad` of parameters and inputs only. Once such a value is written into another tensor, every
    later floating value counts, as views may share its memory.
    """
    found: set[fx.Node] = set()
    if not torch.is_grad_enabled():
        return frozenset(found)
    written = False
    for node in graph.nodes:
        value = node.meta.get("val")
        values = value if isinstance(value, (list, tuple)) else [value]
        if node.op in ("placeholder", "get_attr"):
            depends = isinstance(value, torch.Tensor) and value.requires_grad
        else:
            depends = node.target not in _NO_GRADIENT and (written or not found.isdisjoint(node.all_input_nodes))
            written |= depends and isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        if depends and any(isinstance(each, torch.Tensor) and _is_inexact(each) for each in values):
            found.add(node)
    return frozenset(found)


def _is_inexact(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
