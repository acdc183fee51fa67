"""Arguments of aten ops as JSON, as references hold them.

A value is {"%": slot}, a dtype {"dtype": "float32"}, a memory format {"memory_format": "contiguous_format"}, a float
without a JSON form {"float": "inf"}; the rest is itself. Arguments about where a tensor is stored (`device`, `layout`,
`pin_memory`) are dropped. The memory format is kept: the reference runs eagerly, where a later view may depend on the
strides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

DROPPED = frozenset({"device", "layout", "pin_memory"})
"""Arguments about the storage of a tensor."""

_INSTEAD = {torch.ops.aten.to.device: torch.ops.aten.to.dtype}
"""Overloads with a required dropped argument, and the overloads without it."""


def op_name(target: torch._ops.OpOverload) -> str:
    """The name of an op in a program: "aten.add.Tensor"."""
    namespace, name = target._schema.name.split("::")
    return f"{namespace}.{name}.{target._overloadname}"


def encode_call(node: fx.Node, slot: Callable[[fx.Node], int]) -> tuple[str, list[Any], dict[str, Any]]:
    """Op name, arguments and keyword arguments of an aten call. Raises ValueError if one has no JSON form."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    dropped = False
    for argument, value in zip(target._schema.arguments, node.args, strict=False):
        if argument.name in DROPPED:
            dropped = True
        elif dropped:
            keywords[argument.name] = encode(value, slot)
        else:
            positional.append(encode(value, slot))
    for name, value in node.kwargs.items():
        if name not in DROPPED:
            keywords[name] = encode(value, slot)
    return op_name(_INSTEAD.get(target, target)), positional, keywords


def encode(value: Any, slot: Callable[[fx.Node], int]) -> Any:
    """An argument as JSON. Raises ValueError for a type without a JSON form."""
    if isinstance(value, fx.Node):
        return {"%": slot(value)}
    if isinstance(value, (list, tuple)):
        return [encode(item, slot) for item in value]
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.memory_format):
        return {"memory_format": str(value).removeprefix("torch.")}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f'an argument of type "{type(value).__name__}" ({value}) has no JSON form')
