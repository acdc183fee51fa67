"""The few words in which rules are written: rows from dim numbers, rows that carry partial sums through.

A rule may offer rows without caring for extents: `finish` drops those that shard a dim of extent 0 or 1, or one that is
not there, and partial bools; it gives the fills of contractions, and puts all-Replicate first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import inf

import torch

from ....ir.placement import AxisPlacement, Partial, Reduce, Replicate, Shard
from .call import Call
from .strategy import Lowering, Row, TensorMeta, Tie

Rule = Callable[[Call], "list[Row]"]
"""A rule gives the rows of a call, all-Replicate left out."""

R = Replicate()
P = Partial(Reduce.SUM)
_FILL = {Reduce.SUM: 0.0, Reduce.MAX: -inf, Reduce.MIN: inf}


def dim(index: int, rank: int) -> int:
    """A dim counted from the end made one counted from the start."""
    return index + rank if index < 0 else index


def place(where: int | AxisPlacement | None) -> AxisPlacement:
    """An int is Shard of that dim, None is Replicate, a placement is itself."""
    if where is None:
        return R
    return Shard(where) if isinstance(where, int) else where


def row(
    outputs: Sequence[int | AxisPlacement | None],
    inputs: Sequence[int | AxisPlacement | None],
    *,
    ties: tuple[Tie, ...] = (),
    fills: tuple[float | None, ...] = (),
    lowering: Lowering | None = None,
) -> Row:
    """A row from dim numbers (int: Shard, None: Replicate, or a placement)."""
    return Row(tuple(map(place, outputs)), tuple(map(place, inputs)), ties, fills, lowering)


def everywhere(call: Call, output: int | AxisPlacement | None, given: int | AxisPlacement | None) -> Row:
    """The row with one placement for all outputs and one for all inputs."""
    return row([output] * len(call.outputs), [given] * len(call.inputs))


def moved(call: Call, pairs: Iterable[tuple[int, int]]) -> list[Row]:
    """Rows of an op that only moves dims: (input dim, output dim); every partial passes through."""
    rows = [everywhere(call, there, here) for here, there in pairs]
    return rows + [everywhere(call, Partial(reduce), Partial(reduce)) for reduce in Reduce]


def linear(call: Call, *operands: str) -> Row:
    """The row of an op that is linear in `operands` taken together: these Partial(sum), the others Replicate."""
    return row([P] * len(call.outputs), [P if name in operands else R for name in call.names()])


def finish(call: Call, rows: Iterable[Row]) -> tuple[Row, ...]:
    """The rows that hold for the call's extents, with fills, each once, all-Replicate first."""
    outputs = tuple(R if meta is not None else None for meta in call.outputs)
    kept: dict[Row, None] = {Row(outputs, (R,) * len(call.inputs)): None}
    for candidate in rows:
        absent = tuple(
            None if meta is None else placement for meta, placement in zip(call.outputs, candidate.outputs, strict=True)
        )
        found = replace(candidate, outputs=absent)
        if _fits(call, found):
            kept[_filled(found)] = None
    return tuple(kept)


def _fits(call: Call, found: Row) -> bool:
    if len(found.inputs) != len(call.inputs):
        return False
    sides = [*zip(call.outputs, found.outputs, strict=True), *zip(call.inputs, found.inputs, strict=True)]
    return all(_possible(meta, placement) for meta, placement in sides)


def _possible(meta: TensorMeta | None, placement: AxisPlacement | None) -> bool:
    if meta is None or not isinstance(placement, Shard):
        return not (isinstance(placement, Partial) and meta is not None and meta.dtype == torch.bool)
    return 0 <= placement.dim < len(meta.shape) and meta.shape[placement.dim] > 1


def _filled(found: Row) -> Row:
    """Where a sharded input ends in a partial output, its padding must hold the reduction's neutral element."""
    reduced = [placement.reduce for placement in found.outputs if isinstance(placement, Partial)]
    if found.fills or not reduced or not any(isinstance(placement, Shard) for placement in found.inputs):
        return found
    fill = _FILL[reduced[0]]
    return replace(found, fills=tuple(fill if isinstance(p, Shard) else None for p in found.inputs))
