"""What torch ops give, without their numbers: each op runs once on meta tensors for each set of shapes it meets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from ..program.ops import torch_op
from .values import Meta

META_FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError)
"""What a torch op raises for shapes that it cannot take, and where it has no meta kernel."""


class NoShapes(Exception):
    """An op cannot take these shapes, or has no meta kernel; the message is torch's own first line."""


@dataclass(frozen=True)
class Given:
    """One result: a tensor on storage number `storage` of `bytes`, or (meta None) the plain `value`.

    Storages 0, 1, .. are those of the tensors among the arguments, left to right; the numbers after them are new.
    """

    meta: Meta | None
    storage: int = 0
    bytes: int = 0
    value: object = None


def results_of(op: str, args: Sequence[object], kwargs: Mapping[str, object]) -> tuple[Given, ...]:
    """The results of an op whose tensor arguments are given as `Meta`; raises NoShapes.

    >>> [each.storage for each in results_of("aten.t.default", [Meta((2, 3), (3, 1), torch.float32)], {})]
    [0]
    """
    return _results(op, _frozen(list(args)), tuple((key, _frozen(value)) for key, value in kwargs.items()))


@lru_cache(maxsize=1 << 16)
def _results(op: str, args: object, kwargs: tuple[tuple[str, object], ...]) -> tuple[Given, ...]:
    found = torch_op(op)
    tensors: list[torch.Tensor] = []
    filled = _thawed(args, tensors)
    named = {key: _thawed(value, tensors) for key, value in kwargs}
    if found.is_factory:
        named["device"] = torch.device("meta")
    try:
        with torch.no_grad():
            results = found.overload(*filled, **named)
    except META_FAILURES as error:
        raise NoShapes((str(error).strip() or type(error).__name__).splitlines()[0]) from error
    numbers = {_identity(tensor): at for at, tensor in reversed(list(enumerate(tensors)))}
    count = len(tensors)
    given = []
    for each in results if found.gives_list else [results]:
        if not isinstance(each, torch.Tensor):
            given.append(Given(None, value=each))
            continue
        number = numbers.setdefault(_identity(each), count + len(given))
        meta = Meta(tuple(each.shape), tuple(each.stride()), each.dtype)
        given.append(Given(meta, number, each.untyped_storage().nbytes()))
    return tuple(given)


def _identity(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _frozen(value: object) -> object:
    """A key that tells 1 from 1.0 and from True, which promote differently."""
    if isinstance(value, list | tuple):
        return tuple(_frozen(each) for each in value)
    return value if value is None or isinstance(value, Meta) else _Plain(type(value), value)


@dataclass(frozen=True)
class _Plain:
    kind: type
    value: object


def _thawed(value: object, tensors: list[torch.Tensor]) -> Any:
    match value:
        case Meta(shape, stride, dtype):
            tensors.append(torch.empty_strided(shape, stride, dtype=dtype, device="meta"))
            return tensors[-1]
        case tuple():
            return [_thawed(each, tensors) for each in value]
        case _Plain():
            return value.value
    return value
