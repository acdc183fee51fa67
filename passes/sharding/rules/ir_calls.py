"""Sharding strategies of an operation of the IR."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from ....ir.attributes import from_attribute
from ....ir.bindings import mlir
from ....ir.module import Module
from ....ir.operations import Call
from ....ir.types import TensorType, from_mlir
from .blocks import Blocks, block_strategies
from .call import Call as BoundCall
from .call import bind
from .lookup import strategies_for
from .strategy import OpStrategies, TensorMeta

BLOCKS = "comm.blocks"
"""The attribute of a module for `blocks_in`."""


def call_strategies(call: Call, results: Sequence[TensorType | None], blocks: Collection[Blocks] = ()) -> OpStrategies:
    """The strategies of a call on values of global shapes; `results` are the types of its results.

    `blocks` are those that dims of the module's values are cut inside of.
    """
    args = tuple(_describe(a) for a in call.args)
    kwargs = {key: _describe(value) for key, value in call.kwargs.items()}
    found = strategies_for(call.name, args, kwargs, metas(results))
    bound = bound_call(call, results) if blocks else None
    if bound is None:
        return found
    return replace(found, strategies=(*found.strategies, *block_strategies(bound, found.strategies, blocks)))


def bound_call(call: Call, results: Sequence[TensorType | None]) -> BoundCall | None:
    """The call with its operands by name, tensors as shape and dtype; None for an op without a schema."""
    kwargs = {key: _describe(value) for key, value in call.kwargs.items()}
    return bind(call.name, tuple(_describe(a) for a in call.args), kwargs, metas(results))


def blocks_in(module: Module) -> tuple[Blocks, ...]:
    """The blocks that dims of the module's values are cut inside of, as `find-blocks` has noted."""
    attributes = module.operation.attributes
    if BLOCKS not in attributes:
        return ()
    return tuple(tuple(blocks) for blocks in from_attribute(attributes[BLOCKS]))


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
