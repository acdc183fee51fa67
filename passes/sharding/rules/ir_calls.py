"""Sharding strategies of an operation of the IR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....ir.bindings import mlir
from ....ir.operations import Call
from ....ir.types import TensorType, from_mlir
from .lookup import strategies_for
from .strategy import OpStrategies, TensorMeta


def call_strategies(call: Call, results: Sequence[TensorType | None]) -> OpStrategies:
    """The strategies of a call on values of global shapes; `results` are the types of its results."""
    args = tuple(_describe(a) for a in call.args)
    kwargs = {key: _describe(value) for key, value in call.kwargs.items()}
    return strategies_for(call.name, args, kwargs, metas(results))


def metas(types: Sequence[TensorType | None]) -> tuple[TensorMeta | None, ...]:
    """Shape and dtype of each type; None for a result that is not computed."""
    return tuple(None if t is None else TensorMeta(t.shape, t.dtype) for t in types)


def _describe(argument: Any) -> Any:
    if isinstance(argument, mlir.Value):
        type_ = from_mlir(argument.type)
        return TensorMeta(type_.shape, type_.dtype)
    if isinstance(argument, (list, tuple)):
        return tuple(_describe(a) for a in argument)
    return argument
