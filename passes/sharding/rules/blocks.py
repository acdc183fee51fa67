"""Strategies for dims that are cut inside each of their blocks, as the columns of a fused projection are.

Blocks stay together through whatever keeps the dim: such a strategy is that of the whole dim. Three kinds of ops take
blocks apart and join them: splits and slices at the ends of blocks, concatenations, and views that give equal blocks a
dim of their own. Their other sides are cut as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from itertools import accumulate, pairwise
from math import prod

from ....ir.dim_groups import dim_groups
from ....ir.placement import AxisPlacement, Shard
from .builders import dim, strategy
from .call import Call
from .strategy import Lowering, Strategy, Tie

Blocks = tuple[int, ...]
"""The extents of a dim's blocks."""


def block_strategies(call: Call, strategies: Collection[Strategy], known: Collection[Blocks]) -> list[Strategy]:
    """The strategies of a call on dims that are cut inside blocks, for all `known` blocks."""
    found: list[Strategy] = []
    for blocks in known:
        found += [kept for each in strategies if (kept := _kept(call, each, blocks)) is not None]
        rule = _RULES.get(call.op) if min(blocks) > 0 else None
        found += [] if rule is None else rule(call, blocks)
    return found


def ends_of(blocks: Blocks) -> tuple[int, ...]:
    """Where blocks begin and end.

    >>> ends_of((4, 1, 1)), ends_of((4, -4))
    ((0, 4, 5, 6), (0, 4, 8))
    """
    return (0, *accumulate(map(abs, blocks)))


def _kept(call: Call, candidate: Strategy, blocks: Blocks) -> Strategy | None:
    """The strategy on blocks, where all that it shards are dims of the blocks' extent; else None.

    A ring knows the zigzag of two blocks, of which the second is reversed.
    """
    sides = [*zip(call.outputs, candidate.outputs, strict=True), *zip(call.inputs, candidate.inputs, strict=True)]
    extents = {m.shape[p.dim] for m, p in sides if m is not None and isinstance(p, Shard)}
    is_known = candidate.lowering is None or (candidate.lowering is Lowering.RING and min(blocks) < 0)
    if extents != {sum(map(abs, blocks))} or candidate.ties or not is_known:
        return None
    outputs = tuple(None if p is None else _blocked(p, blocks) for p in candidate.outputs)
    return replace(candidate, outputs=outputs, inputs=tuple(_blocked(p, blocks) for p in candidate.inputs))


def _blocked(placement: AxisPlacement, blocks: Blocks) -> AxisPlacement:
    return Shard(placement.dim, blocks) if isinstance(placement, Shard) else placement


def _split(call: Call, blocks: Blocks) -> list[Strategy]:
    """split, split_with_sizes: each result is one block."""
    along, shape = dim(call.integer("dim"), len(call.inputs[0].shape)), call.inputs[0].shape
    sizes = tuple(meta.shape[along] if meta is not None else 0 for meta in call.outputs)
    fits = shape[along] == sum(blocks) and sizes == blocks
    return [strategy([along] * len(sizes), [Shard(along, blocks)])] if fits else []


def _slice(call: Call, blocks: Blocks) -> list[Strategy]:
    """slice and slice_backward: the slice is one block."""
    backward = call.op == "aten.slice_backward.default"
    whole = call.out() if backward else call.inputs[0]
    along = dim(call.integer("dim"), len(whole.shape))
    if whole.shape[along] != sum(blocks) or not is_block(slice_bounds(call, whole.shape[along]), blocks):
        return []
    return [strategy([Shard(along, blocks)], [along]) if backward else strategy([along], [Shard(along, blocks)])]


def slice_bounds(call: Call, extent: int) -> tuple[int, int] | None:
    """(start, end) of a slice or slice_backward of a dim of `extent` elements; None for one with a step."""
    start, end, step = (call.operands.get(name) for name in ("start", "end", "step"))
    if step not in (None, 1) or not isinstance(start, int | None) or not isinstance(end, int | None):
        return None
    first, last = start or 0, extent if end is None else min(end, extent)
    return first + extent * (first < 0), last + extent * (last < 0)


def is_block(bounds: tuple[int, int] | None, blocks: Blocks) -> bool:
    """Whether (start, end) are those of one block."""
    ends = ends_of(blocks)
    return bounds is not None and bounds in [*pairwise(ends)]


def _cat(call: Call, blocks: Blocks) -> list[Strategy]:
    """cat: each part is one block."""
    rank = len(call.out().shape)
    along = dim(call.integer("dim"), rank)
    fits = all(len(meta.shape) == rank for meta in call.inputs)
    fits = fits and tuple(meta.shape[along] for meta in call.inputs) == blocks
    return [strategy([Shard(along, blocks)], [along] * len(blocks))] if fits else []


def _view(call: Call, blocks: Blocks) -> list[Strategy]:
    """view, reshape: equal blocks get a dim of their own, and the dim after it is cut; or the other way about."""
    before, after = call.inputs[0].shape, call.out().shape
    if len({*blocks}) != 1 or 0 in before:
        return []
    found = []
    for before_dims, after_dims in dim_groups(before, after):
        for joined, apart, joined_shape, apart_shape in (
            (before_dims, after_dims, before, after), (after_dims, before_dims, after, before)
        ):  # fmt: skip
            if len(joined) != 1 or len(apart) < 2 or joined_shape[joined[0]] != sum(blocks):
                continue
            if apart_shape[apart[0]] == len(blocks):
                tie = Tie(blocks[0], 1, apart_shape[apart[1]], prod(apart_shape[d] for d in apart[2:]))
                sides = [Shard(joined[0], blocks)], [apart[1]]
                inputs, outputs = sides if joined is before_dims else sides[::-1]
                found.append(strategy(outputs, inputs, ties=(tie,)))
    return found


_RULES: dict[str, Callable[[Call, Blocks], list[Strategy]]] = {
    **dict.fromkeys(("aten.split.Tensor", "aten.split_with_sizes.default"), _split),
    **dict.fromkeys(("aten.slice.Tensor", "aten.slice_backward.default"), _slice),
    "aten.cat.default": _cat,
    **dict.fromkeys(("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default"), _view),
}
"""By op, the strategies in which a dim in blocks becomes dims that are cut as a whole, or comes from them."""
