"""Shapes of the results of torch ops: each op runs on meta tensors, once for each distinct set of arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from ...ops.table import in_layout
from ..program.ops import torch_op
from .values import Meta

META_FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError)
"""The exceptions that a torch op raises for shapes that it cannot take, and where it has no meta kernel."""


class ShapeUnknown(Exception):
    """An op cannot take these shapes, or has no meta kernel; the message is torch's own first line."""


@dataclass(frozen=True)
class OpResult:
    """One result: a tensor on storage number `storage` of `bytes` bytes, or (meta None) the plain `value`.

    Storages 0, 1, .. are those of the tensors among the arguments, left to right; higher numbers are new storages.
    """

    meta: Meta | None
    storage: int = 0
    bytes: int = 0
    value: object = None


def results_of(op: str, args: Sequence[object], kwargs: Mapping[str, object]) -> tuple[OpResult, ...]:
    """The results of an op whose tensor arguments are given as `Meta`; raises ShapeUnknown.

    >>> [each.storage for each in results_of("aten.t.default", [Meta((2, 3), (3, 1), torch.float32)], {})]
    [0]
    """
    return _results(op, _hashable(list(args)), tuple((key, _hashable(value)) for key, value in kwargs.items()))


@lru_cache(maxsize=1 << 16)
def _results(op: str, args: object, kwargs: tuple[tuple[str, object], ...]) -> tuple[OpResult, ...]:
    table_op = torch_op(op)
    tensors: list[torch.Tensor] = []
    try:
        arguments = _to_meta(args, tensors)
        keywords = {key: _to_meta(value, tensors) for key, value in kwargs}
        if table_op.is_factory:
            keywords["device"] = torch.device("meta")
        with torch.no_grad():
            # As the executor calls it: in the layout that the op needs, so that a copy is no view of its operand.
            laid_out = {key: in_layout(value, table_op.layout) for key, value in keywords.items()}
            results = table_op.overload(*[in_layout(value, table_op.layout) for value in arguments], **laid_out)
    except META_FAILURES as error:
        raise ShapeUnknown((str(error).strip() or type(error).__name__).splitlines()[0]) from error
    numbers = {_identity(tensor): index for index, tensor in reversed(list(enumerate(tensors)))}
    count = len(tensors)
    op_results = []
    for result in results if table_op.gives_list else [results]:
        if not isinstance(result, torch.Tensor):
            op_results.append(OpResult(None, value=result))
            continue
        number = numbers.setdefault(_identity(result), count + len(op_results))
        meta = Meta(tuple(result.shape), tuple(result.stride()), result.dtype)
        op_results.append(OpResult(meta, number, result.untyped_storage().nbytes()))
    return tuple(op_results)


def _identity(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _hashable(value: object) -> object:
    """A hashable key that tells 1 from 1.0 and from True, which promote differently."""
    if isinstance(value, list | tuple):
        return tuple(_hashable(item) for item in value)
    return value if value is None or isinstance(value, Meta) else _Plain(type(value), value)


@dataclass(frozen=True)
class _Plain:
    kind: type
    value: object


def _to_meta(value: object, tensors: list[torch.Tensor]) -> Any:
    match value:
        case Meta(shape, stride, dtype):
            tensors.append(torch.empty_strided(shape, stride, dtype=dtype, device="meta"))
            return tensors[-1]
        case tuple():
            return [_to_meta(item, tensors) for item in value]
        case _Plain():
            return value.value
    return value
