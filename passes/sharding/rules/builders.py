"""Builders for sharding rules: strategies from dim numbers, strategies of linear ops on partial sums.

A rule may offer strategies without checking extents: `finish` drops those that shard a dim of extent 0 or 1 or a dim
that does not exist, and partial bools. It adds the fills of contractions, and puts all-Replicate first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import inf

import torch

from ....ir.placement import AxisPlacement, Partial, Reduce, Replicate, Shard
from .call import Call
from .strategy import Lowering, Strategy, TensorMeta, Tie

Rule = Callable[[Call], "list[Strategy]"]
"""A sharding rule: gives the strategies of a call, without all-Replicate."""

R = Replicate()
P = Partial(Reduce.SUM)
_FILL = {Reduce.SUM: 0.0, Reduce.MAX: -inf, Reduce.MIN: inf}


def dim(index: int, rank: int) -> int:
    """The dim counted from the start; a negative `index` counts from the end."""
    return index + rank if index < 0 else index


def to_placement(placement: int | AxisPlacement | None) -> AxisPlacement:
    """An int is Shard of that dim, None is Replicate, a placement is itself."""
    if placement is None:
        return R
    return Shard(placement) if isinstance(placement, int) else placement


def strategy(
    outputs: Sequence[int | AxisPlacement | None],
    inputs: Sequence[int | AxisPlacement | None],
    *,
    ties: tuple[Tie, ...] = (),
    fills: tuple[float | None, ...] = (),
    lowering: Lowering | None = None,
) -> Strategy:
    """A strategy from dim numbers (int: Shard, None: Replicate, or a placement)."""
    return Strategy(tuple(map(to_placement, outputs)), tuple(map(to_placement, inputs)), ties, fills, lowering)


def uniform(call: Call, output: int | AxisPlacement | None, input: int | AxisPlacement | None) -> Strategy:
    """The strategy with one placement for all outputs and one for all inputs."""
    return strategy([output] * len(call.outputs), [input] * len(call.inputs))


def moved_dims(call: Call, pairs: Iterable[tuple[int, int]]) -> list[Strategy]:
    """Strategies of an op that only moves dims: (input dim, output dim); every partial passes through."""
    strategies = [uniform(call, output_dim, input_dim) for input_dim, output_dim in pairs]
    return strategies + [uniform(call, Partial(reduce), Partial(reduce)) for reduce in Reduce]


def linear(call: Call, *operands: str) -> Strategy:
    """The strategy of an op that is linear in `operands` together: these are Partial(sum), the others Replicate."""
    return strategy([P] * len(call.outputs), [P if name in operands else R for name in call.names()])


def finish(call: Call, strategies: Iterable[Strategy]) -> tuple[Strategy, ...]:
    """The strategies that fit the call's extents, with fills, without duplicates, all-Replicate first."""
    outputs = tuple(R if meta is not None else None for meta in call.outputs)
    kept: dict[Strategy, None] = {Strategy(outputs, (R,) * len(call.inputs)): None}
    for candidate in strategies:
        outputs_present = tuple(
            None if meta is None else placement for meta, placement in zip(call.outputs, candidate.outputs, strict=True)
        )
        fitting = replace(candidate, outputs=outputs_present)
        if _fits(call, fitting):
            kept[_filled(fitting)] = None
    return tuple(kept)


def _fits(call: Call, candidate: Strategy) -> bool:
    if len(candidate.inputs) != len(call.inputs):
        return False
    sides = [*zip(call.outputs, candidate.outputs, strict=True), *zip(call.inputs, candidate.inputs, strict=True)]
    return all(_possible(meta, placement) for meta, placement in sides)


def _possible(meta: TensorMeta | None, placement: AxisPlacement | None) -> bool:
    if meta is None or not isinstance(placement, Shard):
        return not (isinstance(placement, Partial) and meta is not None and meta.dtype == torch.bool)
    return 0 <= placement.dim < len(meta.shape) and meta.shape[placement.dim] > 1


def _filled(candidate: Strategy) -> Strategy:
    """Where a sharded input ends in a partial output, its padding must hold the reduction's neutral element."""
    reduced = [placement.reduce for placement in candidate.outputs if isinstance(placement, Partial)]
    if candidate.fills or not reduced or not any(isinstance(placement, Shard) for placement in candidate.inputs):
        return candidate
    fill = _FILL[reduced[0]]
    return replace(candidate, fills=tuple(fill if isinstance(p, Shard) else None for p in candidate.inputs))
