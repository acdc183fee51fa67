"""Canonical form of an operation: the same computation has the same name and arguments.

Reshapes and casts lose the arguments that follow from their result type, arguments equal to the schema's default are
left out, and a number in place of a tensor takes the scalar overload.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

_RENAMED = {"aten.view.default": "aten.reshape.default", "aten._unsafe_view.default": "aten.reshape.default"}
_DEFINED_BY_TYPE = frozenset({"aten.reshape.default", "aten.expand.default", "aten._to_copy.default"})
_COPIES = frozenset(
    {
        "aten.alias.default",
        "aten.clone.default",
        "aten.contiguous.default",
        "aten.detach.default",
        "aten.lift_fresh_copy.default",
    }
)


def overload(name: str) -> torch._ops.OpOverload:
    """The torch operator called "aten.mul.Tensor"."""
    namespace, base, variant = name.split(".")
    op_overload: torch._ops.OpOverload = getattr(getattr(getattr(torch.ops, namespace), base), variant)
    return op_overload


@cache
def defaults(name: str) -> dict[str, Any]:
    """The default values of an aten operator's arguments, by argument name."""
    if not name.startswith("aten."):
        return {}
    arguments = overload(name)._schema.arguments
    return {a.name: a.default_value for a in arguments if a.has_default_value()}


def canonical(name: str, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The canonical name and arguments of an operation."""
    name = _RENAMED.get(name, name)
    if name in _DEFINED_BY_TYPE:
        return name, {"self": arguments["self"]}
    if name.endswith(".Tensor") and isinstance(arguments.get("other"), (bool, int, float)):
        name = name.replace(".Tensor", ".Scalar")
    default = defaults(name)
    return name, {k: v for k, v in arguments.items() if v is not None and not (k in default and default[k] == v)}


def is_identity(name: str, arguments: Mapping[str, Any], same_type: bool) -> bool:
    """Whether an operation returns its operand `self` unchanged; `same_type`: whether their types are equal."""
    if name in _COPIES:
        return True
    return same_type and (name in _DEFINED_BY_TYPE or (name == "aten.pow.Tensor_Scalar" and arguments["exponent"] == 1))
