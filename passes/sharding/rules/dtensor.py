"""DTensor's registered sharding strategies, read as rows. The only module that touches these private tables of torch.

Two tables are read. Single-dim strategies are rows already. Older strategies expect operands that are placed: each
candidate placement of the first operand is tried, alone, on a mesh of one (which every extent divides).

Taken: Shard, Replicate, Partial(sum). Left out: partial averages, products and extremes, strided shards and partials
that carry a mask. A row that turns a shard into a partial sum is taken only of ops to which zeros as
padding add nothing. Refused: random ops, whose values depend on who computes them, and factorisations, which fail on
the numbers that padding may hold.
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
from torch.distributed.tensor import placement_types as theirs
from torch.distributed.tensor._dtensor_spec import DTensorSpec
from torch.distributed.tensor._dtensor_spec import TensorMeta as TheirMeta
from torch.distributed.tensor._op_schema import OpSchema, OpSpec, OpStrategy, TupleStrategy
from torch.distributed.tensor._ops.single_dim_strategy import _ShardingPlaceholder

from ....ir.placement import AxisPlacement, Partial, Replicate, Shard
from .call import Call, overload
from .strategy import Row, TensorMeta

_REFUSALS = (AssertionError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What strategies raise for operands that they do not take."""

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


def rows(call: Call) -> list[Row] | None:
    """DTensor's rows for the call, extents not yet looked at; None where it has no strategy, or refuses it."""
    op = overload(call.op)
    if op is None or torch.Tag.nondeterministic_seeded in op.tags or _SOLVER.match(call.op):
        return None
    propagator = DTensor._op_dispatcher.sharding_propagator
    if op in propagator.op_single_dim_strategy_funcs:
        found = _single_dim(op, call)
    elif op in propagator.op_strategy_funcs:
        found = list(_placed(op, call))
    else:
        return None
    if found is None:
        return None
    usable = [kept for kept in found if _usable(call, kept)]
    return usable if torch.Tag.pointwise in op.tags else [_with_safe_indices(call, kept) for kept in usable]


def _single_dim(op: torch._ops.OpOverload, call: Call) -> list[Row] | None:
    info = DTensor._op_dispatcher.sharding_propagator.op_single_dim_strategy_funcs[op]
    args, kwargs = _arguments(op, call, _their_meta)
    try:
        answers = info.func(op, tuple(args), kwargs)
    except _REFUSALS:
        return None
    outputs = len(call.outputs)
    found = (_row(answer[:outputs], answer[outputs:]) for answer in answers)
    return [each for each in found if each is not None]


def _placed(op: torch._ops.OpOverload, call: Call) -> Iterator[Row]:
    """Rows of the strategies that want placed operands."""
    strategy = DTensor._op_dispatcher.sharding_propagator.op_strategy_funcs[op]
    for candidate in _candidates(call):
        wanted = iter([candidate])

        def placed(meta: TensorMeta, wanted: Iterator[theirs.Placement] = wanted) -> OpStrategy:
            spec = DTensorSpec(_mesh(), (next(wanted, theirs.Replicate()),), _their_meta(meta))
            return OpStrategy([OpSpec(spec)])

        args, kwargs = _arguments(op, call, placed)
        try:
            answer = strategy(OpSchema(op, tuple(args), kwargs))
        except _REFUSALS:
            continue
        if isinstance(answer, OpStrategy):
            yield from (found for spec in answer.strategies if (found := _of_spec(spec)) is not None)


def _candidates(call: Call) -> list[theirs.Placement]:
    if not call.inputs:
        return [theirs.Replicate()]
    shards = [theirs.Shard(d) for d, extent in enumerate(call.inputs[0].shape) if extent > 1]
    return [theirs.Replicate(), *shards, theirs.Partial("sum")]


def _of_spec(spec: OpSpec) -> Row | None:
    outputs = spec.output_specs if isinstance(spec.output_specs, tuple) else (spec.output_specs,)
    given = spec.input_specs or ()
    return _row(
        [None if each is None else each.placements[0] for each in outputs], [each.placements[0] for each in given]
    )


def _row(outputs: Sequence[Any], given: Sequence[Any]) -> Row | None:
    """Our row for theirs; None where one of its placements has no equal here."""
    there = [None if each is None else _placement(each) for each in outputs]
    here = [_placement(each) for each in given]
    if any(each is None for each in here):
        return None
    if any(ours is None and each is not None for ours, each in zip(there, outputs, strict=True)):
        return None
    return Row(tuple(there), tuple(each for each in here if each is not None))


def _placement(each: object) -> AxisPlacement | None:
    if isinstance(each, _ShardingPlaceholder) or type(each) is theirs.Shard:
        return Shard(each.dim)
    if type(each) is theirs.Replicate:
        return Replicate()
    if type(each) is theirs.Partial and each.reduce_op == "sum":
        return Partial()
    return None


def _usable(call: Call, found: Row) -> bool:
    """Whether the row says as much as the call has operands, and padding cannot spoil it."""
    if len(found.outputs) != len(call.outputs) or len(found.inputs) != len(call.inputs):
        return False
    sums = any(isinstance(each, Partial) for each in found.outputs)
    cut = any(isinstance(each, Shard) for each in found.inputs)
    return not (sums and cut) or call.op in CONTRACTIONS


def _with_safe_indices(call: Call, found: Row) -> Row:
    """Integers are indices in most ops that are not pointwise: pad them with one that exists."""
    pairs = zip(call.inputs, found.inputs, strict=True)
    indices = [isinstance(p, Shard) and not (m.dtype.is_floating_point or m.dtype.is_complex) for m, p in pairs]
    return replace(found, fills=tuple(0.0 if index else None for index in indices)) if any(indices) else found


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


def _their_meta(meta: TensorMeta) -> TheirMeta:
    strides: list[int] = []
    step = 1
    for extent in reversed(meta.shape):
        strides.insert(0, step)
        step *= extent
    return TheirMeta(torch.Size(meta.shape), tuple(strides), meta.dtype)


@lru_cache(maxsize=1)
def _mesh() -> DeviceMesh:
    return DeviceMesh("cpu", [0], _init_backend=False, _rank=0)
