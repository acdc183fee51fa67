"""Rules of ops that move, cut or copy elements without computing: views, copies, concatenation, padding.

A dim that the op leaves whole may be sharded; all these ops are linear, and most let any partial through.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from ....ir.placement import Partial
from .builders import P, R, Rule, dim, everywhere, linear, moved, row
from .call import Call
from .strategy import Row, Tie

Group = tuple[tuple[int, ...], tuple[int, ...]]


def same(call: Call) -> list[Row]:
    """clone, alias, detach: output and input lie alike."""
    return moved(call, ((d, d) for d in range(len(call.inputs[0].shape))))


def cast(call: Call) -> list[Row]:
    """_to_copy: as `same`; partial sums pass unless the cast rounds to integers or to bool."""
    rows = moved(call, ((d, d) for d in range(len(call.inputs[0].shape))))
    before, after = call.inputs[0].dtype, call.out().dtype
    exact = before == after or after.is_floating_point or after.is_complex
    return rows if exact else [found for found in rows if P not in found.inputs]


def dim_groups(before: tuple[int, ...], after: tuple[int, ...]) -> list[Group]:
    """The finest split of a reshape into groups of dims (of `before`, of `after`) with equal products; 1s are left out.

    >>> dim_groups((2, 6, 12), (12, 3, 4))
    [((0, 1), (0,)), ((2,), (1, 2))]
    """
    left = [d for d, n in enumerate(before) if n != 1]
    right = [d for d, n in enumerate(after) if n != 1]
    groups: list[Group] = []
    while left and right:
        here, there = [left.pop(0)], [right.pop(0)]
        while (have := prod(before[d] for d in here)) != (want := prod(after[d] for d in there)):
            grow, rest = (here, left) if have < want else (there, right)
            if not rest:
                return groups
            grow.append(rest.pop(0))
        groups.append((tuple(here), tuple(there)))
    return groups


def reshape(call: Call) -> list[Row]:
    """view, reshape: of each group of dims the leading one may be sharded, where chunks break at the same places."""
    before, after = call.inputs[0].shape, call.out().shape
    if 0 in before:
        return []
    rows = moved(call, ())
    for here, there in dim_groups(before, after):
        a, b = here[0], there[0]
        tie = Tie(before[a], prod(before[d] for d in here[1:]), after[b], prod(after[d] for d in there[1:]))
        rows.append(row([b], [a], ties=() if before[a] == after[b] else (tie,)))
    return rows


def expand(call: Call) -> list[Row]:
    """expand: kept dims as they are; a dim made by repetition may be cut on the output alone."""
    before, after = call.inputs[0].shape, call.out().shape
    new = len(after) - len(before)
    rows = moved(call, ())
    for d, extent in enumerate(after):
        kept = d >= new and before[d - new] == extent
        rows.append(row([d], [d - new if kept else None]))
    return rows


def permute(call: Call) -> list[Row]:
    """permute."""
    rank = len(call.inputs[0].shape)
    return moved(call, ((dim(d, rank), place) for place, d in enumerate(call.integers("dims"))))


def transpose(call: Call) -> list[Row]:
    """transpose.int and t (which swaps the two dims of a matrix)."""
    rank = len(call.inputs[0].shape)
    first, second = (0, rank - 1) if "dim0" not in call.operands else (call.integer("dim0"), call.integer("dim1"))
    order = list(range(rank))
    if rank:
        first, second = dim(first, rank), dim(second, rank)
        order[first], order[second] = second, first
    return moved(call, ((d, place) for place, d in enumerate(order)))


def squeezed(call: Call) -> list[Row]:
    """squeeze and unsqueeze: the dims of extent above 1 keep their order."""
    here = [d for d, n in enumerate(call.inputs[0].shape) if n != 1]
    there = [d for d, n in enumerate(call.out().shape) if n != 1]
    return moved(call, zip(here, there, strict=True))


def _others(call: Call, acted: Iterable[int]) -> list[Row]:
    """Rows of an op that keeps its dims and works along `acted` only; operands and outputs lie alike."""
    rank = len(call.inputs[0].shape)
    gone = {dim(d, rank) for d in acted}
    return moved(call, ((d, d) for d in range(rank) if d not in gone))


def cut(call: Call) -> list[Row]:
    """slice, split: every dim but the one cut; that one too where nothing is cut away."""
    whole = len(call.outputs) == 1 and call.out().shape == call.inputs[0].shape
    return _others(call, () if whole else (call.integer("dim"),))


def dropped(call: Call) -> list[Row]:
    """select, unbind: one dim goes."""
    rank = len(call.inputs[0].shape)
    gone = dim(call.integer("dim"), rank)
    return moved(call, ((d, d - (d > gone)) for d in range(rank) if d != gone))


def slice_backward(call: Call) -> list[Row]:
    """slice_backward: the gradient of a slice set into zeros."""
    return _sums_only(_others(call, (call.integer("dim"),)))


def select_backward(call: Call) -> list[Row]:
    """select_backward: the gradient of a select set into zeros."""
    rank = len(call.out().shape)
    new = dim(call.integer("dim"), rank)
    rows = [row([d], [d - (d > new)]) for d in range(rank) if d != new]
    return [*rows, everywhere(call, P, P)]


def slice_scatter(call: Call) -> list[Row]:
    """slice_scatter: a slice set into a tensor."""
    return _others(call, (call.integer("dim"),))


def select_scatter(call: Call) -> list[Row]:
    """select_scatter: one index of a dim set into a tensor."""
    rank = len(call.out().shape)
    gone = dim(call.integer("dim"), rank)
    return [row([d], [d, d - (d > gone)]) for d in range(rank) if d != gone] + moved(call, ())


def cat(call: Call) -> list[Row]:
    """cat: all parts lie alike; the empty 1-d tensors that it ignores are replicated."""
    rank = len(call.out().shape)
    along = dim(call.integer("dim"), rank)
    real = [len(meta.shape) == rank and meta.shape != (0,) for meta in call.inputs]
    rows = [row([d], [d if counts else R for counts in real]) for d in range(rank) if d != along]
    return rows + moved(call, ())


def stack(call: Call) -> list[Row]:
    """stack: all parts lie alike."""
    rank = len(call.out().shape)
    new = dim(call.integer("dim"), rank)
    return moved(call, ((d - (d > new), d) for d in range(rank) if d != new))


def pad(call: Call) -> list[Row]:
    """constant_pad_nd: the dims that are not padded; a partial sum where the padding is zero."""
    rank = len(call.inputs[0].shape)
    amounts = call.integers("pad")
    padded = {rank - 1 - i // 2 for i, amount in enumerate(amounts) if amount}
    rows = [everywhere(call, d, d) for d in range(rank) if d not in padded]
    return rows + ([linear(call, "self")] if call.operands["value"] == 0 else [])


def repeat(call: Call) -> list[Row]:
    """repeat: the dims that are repeated once."""
    before, after = call.inputs[0].shape, call.out().shape
    new = len(after) - len(before)
    return moved(call, ((d, d + new) for d in range(len(before)) if call.integers("repeats")[d + new] == 1))


def triangle(call: Call) -> list[Row]:
    """tril, triu: every dim but the last two."""
    return _sums_only(_others(call, (-1, -2)))


def flip(call: Call) -> list[Row]:
    """flip, roll: the dims that are not turned."""
    dims = call.integers("dims")
    return _others(call, dims if dims else range(len(call.inputs[0].shape)))


def _sums_only(rows: list[Row]) -> list[Row]:
    """Without partial max and min, which the zeros beside the values would spoil."""
    return [found for found in rows if not any(isinstance(p, Partial) and p != P for p in found.inputs)]


TABLE: dict[str, Rule] = {
    **dict.fromkeys(
        ("aten.clone.default", "aten.alias.default", "aten.detach.default", "aten.lift_fresh_copy.default"), same
    ),
    "aten.contiguous.default": same,
    **dict.fromkeys(("aten._to_copy.default", "aten.to.dtype"), cast),
    **dict.fromkeys(("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default"), reshape),
    **dict.fromkeys(("aten.view_copy.default", "aten.flatten.using_ints", "aten.unflatten.int"), reshape),
    "aten.expand.default": expand,
    "aten.permute.default": permute,
    **dict.fromkeys(("aten.transpose.int", "aten.t.default"), transpose),
    **dict.fromkeys(("aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims"), squeezed),
    "aten.unsqueeze.default": squeezed,
    **dict.fromkeys(("aten.slice.Tensor", "aten.split.Tensor", "aten.split_with_sizes.default"), cut),
    **dict.fromkeys(("aten.select.int", "aten.unbind.int"), dropped),
    "aten.slice_backward.default": slice_backward,
    "aten.select_backward.default": select_backward,
    "aten.slice_scatter.default": slice_scatter,
    "aten.select_scatter.default": select_scatter,
    "aten.cat.default": cat,
    "aten.stack.default": stack,
    "aten.constant_pad_nd.default": pad,
    "aten.repeat.default": repeat,
    **dict.fromkeys(("aten.tril.default", "aten.triu.default"), triangle),
    **dict.fromkeys(("aten.flip.default", "aten.roll.default"), flip),
}
