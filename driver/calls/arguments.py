"""The arguments of the loop's calls: copies, another batch, and the values of a constant."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..check.users_call import UsersCall

Arguments = Mapping[str, Any]
"""Of a forward, by name."""
FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError)
"""What a model raises that does not take a constant."""


def two_constants(model: nn.Module, arguments: Arguments) -> list[dict[str, Any]]:
    """Two values for the first bool or integer that the forward takes and runs with in eager mode; else none."""
    signature = inspect.signature(model.forward)
    values = {name: parameter.default for name, parameter in signature.parameters.items()} | dict(arguments)
    for name, value in values.items():
        if isinstance(value, bool | int) and name in signature.parameters and name != "use_cache":
            other = not value if isinstance(value, bool) else value + 1
            if runs(model, {**arguments, name: other}):
                return [{name: other}, {name: value}]
    return []


def runs(model: nn.Module, arguments: Arguments) -> bool:
    """Whether a copy of the model takes the arguments in eager mode."""
    return takes(copy.deepcopy(model), arguments)


def runs_in_eval_mode(model: nn.Module, arguments: Arguments) -> bool:
    """Whether a copy of the model in eval mode takes the arguments in eager mode."""
    return takes(copy.deepcopy(model).eval(), arguments)


def takes(probe: nn.Module, arguments: Arguments) -> bool:
    """Whether the model, whose buffers may change, takes the arguments in eager mode."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            UsersCall(fresh(arguments), False).results(probe, {}, lambda tensor: tensor)
        except FAILURES:
            return False
    return True


def fresh(arguments: Arguments) -> Arguments:
    """Copies, as a forward may write into its inputs. A tensor that is given twice stays one."""
    copies: dict[int, Tensor] = {}

    def copied(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return copies.setdefault(id(leaf), leaf.detach().clone().requires_grad_(leaf.requires_grad))

    result: Arguments = pytree.tree_map(copied, dict(arguments))
    return result


def halved(arguments: Arguments) -> Arguments:
    """The arguments of another batch: floating tensors halved. Integers may be indices, so they stay."""

    def half(leaf: Any) -> Any:
        is_floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return (leaf.detach() * 0.5).requires_grad_(leaf.requires_grad) if is_floating else leaf

    result: Arguments = pytree.tree_map(half, dict(arguments))
    return result
