"""Ops whose result is written into the memory of a state (`into`): torch's in-place form of the op, or a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..program.ops import torch_op


def writes_in_place(op: str) -> bool:
    """Whether torch has the op in a form that writes its result into its first operand."""
    return _in_place(op) is not None


def writing_into(op: str) -> Callable[..., Tensor]:
    """The function that computes an op and writes its result into a tensor of its shape, the first argument."""
    in_place: Callable[..., Any] | None = _in_place(op)
    call = torch_op(op).call

    def write(target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        is_operand = bool(args) and args[0] is target
        if in_place is not None and is_operand:
            in_place(*args, **kwargs)
            return target
        target.copy_(call(*args, **kwargs))
        return target

    return write


def _in_place(op: str) -> Callable[..., Any] | None:
    namespace, name, overload = op.split(".")
    functional = torch_op(op).overload._schema
    packet = getattr(getattr(torch.ops, namespace), f"{name}_", None)
    found = getattr(packet, overload, None)
    if not isinstance(found, torch._ops.OpOverload):
        return None
    first, *others = found._schema.arguments
    writes_first = first.alias_info is not None and first.alias_info.is_write
    alone = not any(each.alias_info is not None and each.alias_info.is_write for each in others)
    alike = [each.name for each in found._schema.arguments] == [each.name for each in functional.arguments]
    return found if writes_first and alone and alike else None
