"""DTensor's registered sharding strategies. The only module that touches these private tables of torch.

Two tables are read. Single-dim strategies map one to one. Older strategies expect operands with placements: each
candidate placement of the first operand is tried, alone, on a mesh of one rank (whose size divides every extent).

Taken: Shard, Replicate, Partial(sum). Left out: partial averages, products and extremes, strided shards and partials
that carry a mask. A strategy that turns a shard into a partial sum is taken only for ops to which zero padding adds
nothing. Refused: random ops, whose values depend on the rank, and factorisations, which fail on the values that padding
may hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import placement_types as dtensor_placements
from torch.distributed.tensor._dtensor_spec import DTensorSpec
from torch.distributed.tensor._dtensor_spec import TensorMeta as DTensorMeta
from torch.distributed.tensor._op_schema import OpSchema, OpSpec, OpStrategy, TupleStrategy
from torch.distributed.tensor._ops.single_dim_strategy import _ShardingPlaceholder

from ....ir.placement import AxisPlacement, Partial, Replicate, Shard
from ....ops.overloads import overload
from .call import Call
from .strategy import Strategy, TensorMeta

_REFUSALS = (AssertionError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What DTensor's strategies raise for operands that they do not support."""

_SOLVER = re.compile(r"aten\._?(linalg_|cholesky|lu_|geqrf|ormqr|triangular_solve)")

CONTRACTIONS = frozenset(
    {
        "aten.mm.default",
        "aten.addmm.default",
        "aten.bmm.default",
        "aten.baddbmm.default",
        "aten.dot.default",
        "aten.mv.default",
        "aten.convolution_backward.default",
    }
)
"""Ops for which a shard padded with zeros gives the right partial sum."""


def dtensor_strategies(call: Call) -> list[Strategy] | None:
    """DTensor's strategies for the call, extents unchecked; None where it has none, or refuses the call."""
    op = overload(call.op)
    if op is None or torch.Tag.nondeterministic_seeded in op.tags or _SOLVER.match(call.op):
        return None
    propagator = DTensor._op_dispatcher.sharding_propagator
    if op in propagator.op_single_dim_strategy_funcs:
        strategies = _single_dim(op, call)
    elif op in propagator.op_strategy_funcs:
        strategies = list(_operand_strategies(op, call))
    else:
        return None
    if strategies is None:
        return None
    usable = [strategy for strategy in strategies if _usable(call, strategy)]
    return usable if torch.Tag.pointwise in op.tags else [_with_safe_indices(call, strategy) for strategy in usable]


def strategies_of_the_caller() -> list[str]:
    """The ops of torch whose strategy the caller registered with DTensor, in place of torch's own or beside them."""
    propagator = DTensor._op_dispatcher.sharding_propagator
    single_dim = propagator.op_single_dim_strategy_funcs.items()
    functions = [*propagator.op_strategy_funcs.items(), *((op, info.func) for op, info in single_dim)]
    of_torch = ("aten", "prims", "prim")
    return sorted({str(op) for op, function in functions if op.namespace in of_torch and not _is_torchs(function)})


def _is_torchs(strategy_func: Any) -> bool:
    """Whether a strategy is of torch's tables; `register_sharding` wraps the caller's in a function of its own."""
    return str(getattr(strategy_func, "__module__", "")).startswith("torch.distributed.tensor._ops")


def _single_dim(op: torch._ops.OpOverload, call: Call) -> list[Strategy] | None:
    info = DTensor._op_dispatcher.sharding_propagator.op_single_dim_strategy_funcs[op]
    args, kwargs = _arguments(op, call, _dtensor_meta)
    try:
        answers = info.func(op, tuple(args), kwargs)
    except _REFUSALS:
        return None
    outputs = len(call.outputs)
    converted = (_from_dtensor(answer[:outputs], answer[outputs:]) for answer in answers)
    return [strategy for strategy in converted if strategy is not None]


def _operand_strategies(op: torch._ops.OpOverload, call: Call) -> Iterator[Strategy]:
    """The strategies of an op whose strategy function expects operands with placements."""
    strategy_func = DTensor._op_dispatcher.sharding_propagator.op_strategy_funcs[op]
    for candidate in _candidates(call):
        first = iter([candidate])

        def placed(meta: TensorMeta, first: Iterator[dtensor_placements.Placement] = first) -> OpStrategy:
            spec = DTensorSpec(_mesh(), (next(first, dtensor_placements.Replicate()),), _dtensor_meta(meta))
            return OpStrategy([OpSpec(spec)])

        args, kwargs = _arguments(op, call, placed)
        try:
            answer = strategy_func(OpSchema(op, tuple(args), kwargs))
        except _REFUSALS:
            continue
        if isinstance(answer, OpStrategy):
            yield from (converted for spec in answer.strategies if (converted := _from_spec(spec)) is not None)


def _candidates(call: Call) -> list[dtensor_placements.Placement]:
    if not call.inputs:
        return [dtensor_placements.Replicate()]
    shards = [dtensor_placements.Shard(d) for d, extent in enumerate(call.inputs[0].shape) if extent > 1]
    return [dtensor_placements.Replicate(), *shards, dtensor_placements.Partial("sum")]


def _from_spec(spec: OpSpec) -> Strategy | None:
    outputs = spec.output_specs if isinstance(spec.output_specs, tuple) else (spec.output_specs,)
    inputs = spec.input_specs or ()
    return _from_dtensor(
        [None if placed is None else placed.placements[0] for placed in outputs],
        [placed.placements[0] for placed in inputs],
    )


def _from_dtensor(outputs: Sequence[Any], inputs: Sequence[Any]) -> Strategy | None:
    """Stretto's strategy for DTensor's; None where Stretto has no equal of one of its placements."""
    our_outputs = [None if placement is None else _placement(placement) for placement in outputs]
    our_inputs = [_placement(placement) for placement in inputs]
    if any(placement is None for placement in our_inputs):
        return None
    if any(ours is None and placement is not None for ours, placement in zip(our_outputs, outputs, strict=True)):
        return None
    return Strategy(tuple(our_outputs), tuple(placement for placement in our_inputs if placement is not None))


def _placement(placement: object) -> AxisPlacement | None:
    if isinstance(placement, _ShardingPlaceholder) or type(placement) is dtensor_placements.Shard:
        return Shard(placement.dim)
    if type(placement) is dtensor_placements.Replicate:
        return Replicate()
    if type(placement) is dtensor_placements.Partial and placement.reduce_op == "sum":
        return Partial()
    return None


def _usable(call: Call, strategy: Strategy) -> bool:
    """Whether the strategy has a placement for each operand and result, and padding cannot change its values."""
    if len(strategy.outputs) != len(call.outputs) or len(strategy.inputs) != len(call.inputs):
        return False
    sums = any(isinstance(placement, Partial) for placement in strategy.outputs)
    cut = any(isinstance(placement, Shard) for placement in strategy.inputs)
    return not (sums and cut) or call.op in CONTRACTIONS


def _with_safe_indices(call: Call, strategy: Strategy) -> Strategy:
    """Fill the padding of integer operands with 0: in ops that are not pointwise most are indices, and 0 is valid."""
    pairs = zip(call.inputs, strategy.inputs, strict=True)
    indices = [isinstance(p, Shard) and not (m.dtype.is_floating_point or m.dtype.is_complex) for m, p in pairs]
    return replace(strategy, fills=tuple(0.0 if index else None for index in indices)) if any(indices) else strategy


def _arguments(op: torch._ops.OpOverload, call: Call, convert: Any) -> tuple[list[Any], dict[str, Any]]:
    """The call's operands as torch's schema has them, with each TensorMeta converted."""
    args, kwargs = [], {}
    for argument in op._schema.arguments:
        value = _converted(call.operands[argument.name], convert)
        if argument.kwarg_only:
            if value is not None:
                kwargs[argument.name] = value
        else:
            args.append(value)
    return args, kwargs


def _converted(value: object, convert: Any) -> Any:
    if isinstance(value, TensorMeta):
        return convert(value)
    if isinstance(value, tuple):
        items = [_converted(item, convert) for item in value]
        if items and all(isinstance(item, OpStrategy) for item in items):
            return TupleStrategy(items)
        return items
    return value


def _dtensor_meta(meta: TensorMeta) -> DTensorMeta:
    strides: list[int] = []
    step = 1
    for extent in reversed(meta.shape):
        strides.insert(0, step)
        step *= extent
    return DTensorMeta(torch.Size(meta.shape), tuple(strides), meta.dtype)


@lru_cache(maxsize=1)
def _mesh() -> DeviceMesh:
    return DeviceMesh("cpu", [0], _init_backend=False, _rank=0)
