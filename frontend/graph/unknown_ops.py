"""The refusal of an op that no program may call, so that nothing is compiled that cannot be loaded."""

from __future__ import annotations

import torch
from torch import fx

from ...ops.allowed import why_not_allowed
from ...ops.table import op_table
from ..captured import CaptureError, origin_of
from ..metadata import source_span


def unknown_op(node: fx.Node, name: str) -> CaptureError:
    """Error E0230 for the op of a node, at the user's line."""
    path = origin_of(node).module_path
    return CaptureError(
        "E0230",
        f'the graph holds operator "{name}"{f" in module {path}" if path else ""}, which Stretto does not compile'
        f"{_reason(node, name)}",
        span=source_span(node),
        help=_way_out(node),
    )


def _reason(node: fx.Node, name: str) -> str:
    if name in op_table():
        return ": it writes to an argument"
    reason = why_not_allowed(node.target) if _is_custom(node) else ""  # type: ignore[arg-type]  # it is an overload
    return f": {reason}" if reason else ""


def _way_out(node: fx.Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload) and _is_custom(node):
        call = f'stretto.allow_ops("{target._schema.name}")'
        if why_not_allowed(target):
            return f"register it as a functional op of tensors with a fake kernel, then call {call} before you compile"
        return f"call {call} before you compile, and wherever the program is loaded"
    return "write this part of the model with other torch functions"


def _is_custom(node: fx.Node) -> bool:
    """Whether the op is of a library and not torch's own."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in ("aten", "prim", "prims")
