"""The arguments of the loop's calls: copies, another batch, and inputs that require gradients."""

from __future__ import annotations

import copy
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


def runs_in_eval_mode(model: nn.Module, arguments: Arguments) -> bool:
    """Whether a copy of the model in eval mode takes the arguments in eager mode."""
    return takes(copy.deepcopy(model).eval(), arguments)


def takes(probe: nn.Module, arguments: Arguments, *, with_gradients: bool = False) -> bool:
    """Whether the model, whose buffers may change, takes the arguments in eager mode."""
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(with_gradients):
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
            return copy.deepcopy(leaf)
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


def differentiated(model: nn.Module, arguments: Arguments) -> Arguments | None:
    """The arguments with gradients wanted for every floating tensor; None if they are, or the model does not run so."""

    def wanted(leaf: Any) -> Any:
        is_floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.detach().requires_grad_() if is_floating else leaf

    result: Arguments = pytree.tree_map(wanted, dict(arguments))
    pairs = zip(pytree.tree_leaves(result), pytree.tree_leaves(dict(arguments)), strict=True)
    is_other = any(a.requires_grad and not b.requires_grad for a, b in pairs if isinstance(a, Tensor))
    return result if is_other and takes(copy.deepcopy(model), result, with_gradients=True) else None
