"""Operands of other strides with the same values, and the comparison of what an op makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from stretto.runtime.program.ops import torch_op
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

Variant = Callable[[Tensor], Tensor | None]
FAILURES = (RuntimeError, TypeError, ValueError, IndexError, AttributeError, NotImplementedError, AssertionError)
"""What torch raises for operands that an op does not take."""


@dataclass(frozen=True)
class OpCall:
    """One call of an op of the table."""

    op: str
    args: Sequence[Any]
    kwargs: dict[str, Any]


def differences(call: OpCall) -> list[str] | None:
    """How the op, called as a program calls it, differs where operands have other strides; None if it cannot be judged.

    It cannot where the op refuses contiguous operands, or gives two results for the same ones.
    """
    flat, spec = tree_flatten((list(call.args), call.kwargs))
    places = [at for at, value in enumerate(flat) if isinstance(value, Tensor)]
    plain = [value.contiguous() if isinstance(value, Tensor) else value for value in flat]
    op = torch_op(call.op)

    def run(function: Callable[..., Any], values: list[Any]) -> Any:
        args, kwargs = tree_unflatten(values, spec)
        return function(*args, **kwargs)

    try:
        expected = run(op.overload, plain)
        repeated = run(op.overload, plain)
    except FAILURES:
        return None
    if not equal(expected, repeated):
        return None
    found = []
    for name, values in _keeping_values(plain, places):
        found += _difference(name, expected, lambda values=values: run(op.call, values))
    for name, values, same_values in _expanded(plain, places):
        try:
            wanted = run(op.overload, same_values)
        except FAILURES:
            continue
        if equal(wanted, run(op.overload, same_values)):
            found += _difference(name, wanted, lambda values=values: run(op.call, values))
    return found


def equal(left: Any, right: Any) -> bool:
    """Whether two results are equal up to rounding; NaNs are equal to NaNs."""
    ours, theirs = tree_flatten(left)[0], tree_flatten(right)[0]
    return len(ours) == len(theirs) and all(map(_equal_values, ours, theirs))


def _difference(name: str, expected: Any, run: Callable[[], Any]) -> list[str]:
    try:
        return [] if equal(expected, run()) else [f"{name} differs"]
    except FAILURES as error:
        return [f"{name} raises {str(error)[:80]}"]


def _equal_values(left: Any, right: Any) -> bool:
    if not isinstance(left, Tensor):
        return bool(left == right)
    if not isinstance(right, Tensor) or left.shape != right.shape or left.dtype != right.dtype:
        return False
    wide = torch.complex128 if left.is_complex() else torch.float64
    return torch.allclose(left.to(wide), right.to(wide), rtol=1e-7, atol=1e-9, equal_nan=True)


def _keeping_values(plain: list[Any], places: list[int]) -> Iterator[tuple[str, list[Any]]]:
    """The operands with one at a time, then with all, in other strides."""
    for name, variant in _VARIANTS.items():
        changed = {at: variant(plain[at]) for at in places}
        changed = {at: value for at, value in changed.items() if value is not None}
        for chosen in [[at] for at in changed] + ([list(changed)] if len(changed) > 1 else []):
            values = [changed[at] if at in chosen else value for at, value in enumerate(plain)]
            yield f"{name} operands {chosen}", values


def _expanded(plain: list[Any], places: list[int]) -> Iterator[tuple[str, list[Any], list[Any]]]:
    """The operands with one expanded along a dim, and the same values contiguous.

    Integers keep their values: some kernels check no indices, and others of the call's operands may depend on them.
    """
    for at in places:
        tensor: Tensor = plain[at]
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        for dim in {0, tensor.dim() - 1} if tensor.dim() and tensor.numel() else set():
            expanded = tensor.narrow(dim, 0, 1).expand(tensor.shape)
            values = [expanded if place == at else value for place, value in enumerate(plain)]
            same = [expanded.contiguous() if place == at else value for place, value in enumerate(plain)]
            yield f"expanded dim {dim} of operand {at}", values, same


def _permuted(tensor: Tensor) -> Tensor | None:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1) if tensor.dim() > 1 else None


def _permuted_inside(tensor: Tensor) -> Tensor | None:
    return tensor.transpose(1, 2).contiguous().transpose(1, 2) if tensor.dim() > 2 else None


def _strided(tensor: Tensor) -> Tensor | None:
    """Every other element of the last dim of a larger tensor."""
    if not tensor.dim():
        return None
    larger = torch.zeros(*tensor.shape[:-1], tensor.shape[-1] * 2, dtype=tensor.dtype)
    larger[..., ::2] = tensor
    return larger[..., ::2]


def _sliced(tensor: Tensor) -> Tensor | None:
    """A window of the last dim of a larger tensor, with an offset."""
    if not tensor.dim():
        return None
    larger = torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + 3, dtype=tensor.dtype)
    larger[..., 2 : 2 + tensor.shape[-1]] = tensor
    return larger[..., 2 : 2 + tensor.shape[-1]]


_VARIANTS: dict[str, Variant] = {
    "permuted": _permuted,
    "permuted inside": _permuted_inside,
    "strided": _strided,
    "sliced": _sliced,
}
