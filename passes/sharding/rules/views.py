"""Rules of ops that move, cut or copy elements without computing: views, copies, concatenation, padding.

A dim that the op does not cut may be sharded; all these ops are linear, and most pass any partial through.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod

from ....ir.dim_groups import dim_groups
from ....ir.placement import Partial
from .blocks import slice_bounds
from .builders import P, R, Rule, dim, linear, moved_dims, strategy, uniform
from .call import Call
from .plane_windows import padding_window
from .strategy import Lowering, Strategy, Tie


def same(call: Call) -> list[Strategy]:
    """clone, alias, detach: output and input have the same placement."""
    return moved_dims(call, ((d, d) for d in range(len(call.inputs[0].shape))))


def cast(call: Call) -> list[Strategy]:
    """_to_copy: as `same`; partial sums pass unless the cast rounds to integers or to bool."""
    strategies = moved_dims(call, ((d, d) for d in range(len(call.inputs[0].shape))))
    before, after = call.inputs[0].dtype, call.out().dtype
    exact = before == after or after.is_floating_point or after.is_complex
    return strategies if exact else [candidate for candidate in strategies if P not in candidate.inputs]


def reshape(call: Call) -> list[Strategy]:
    """view, reshape: of each group of dims the leading one may be sharded, where chunk boundaries coincide."""
    before, after = call.inputs[0].shape, call.out().shape
    if 0 in before:
        return []
    strategies = moved_dims(call, ())
    for before_dims, after_dims in dim_groups(before, after):
        a, b = before_dims[0], after_dims[0]
        tie = Tie(before[a], prod(before[d] for d in before_dims[1:]), after[b], prod(after[d] for d in after_dims[1:]))
        strategies.append(strategy([b], [a], ties=() if before[a] == after[b] else (tie,)))
    return strategies


def expand(call: Call) -> list[Strategy]:
    """expand: kept dims as they are; a repeated dim may be sharded on the output alone."""
    before, after = call.inputs[0].shape, call.out().shape
    new = len(after) - len(before)
    strategies = moved_dims(call, ())
    for d, extent in enumerate(after):
        kept = d >= new and before[d - new] == extent
        strategies.append(strategy([d], [d - new if kept else None]))
    return strategies


def permute(call: Call) -> list[Strategy]:
    """permute."""
    rank = len(call.inputs[0].shape)
    return moved_dims(call, ((dim(d, rank), position) for position, d in enumerate(call.integers("dims"))))


def transpose(call: Call) -> list[Strategy]:
    """transpose.int and t (which swaps the two dims of a matrix)."""
    rank = len(call.inputs[0].shape)
    first, second = (0, rank - 1) if "dim0" not in call.operands else (call.integer("dim0"), call.integer("dim1"))
    order = list(range(rank))
    if rank:
        first, second = dim(first, rank), dim(second, rank)
        order[first], order[second] = second, first
    return moved_dims(call, ((d, position) for position, d in enumerate(order)))


def squeezed(call: Call) -> list[Strategy]:
    """squeeze and unsqueeze: the dims of extent above 1 keep their order."""
    before_dims = [d for d, n in enumerate(call.inputs[0].shape) if n != 1]
    after_dims = [d for d, n in enumerate(call.out().shape) if n != 1]
    return moved_dims(call, zip(before_dims, after_dims, strict=True))


def _other_dims(call: Call, acted: Iterable[int]) -> list[Strategy]:
    """Strategies of an op that keeps its dims and acts on `acted` only; all placements are the same."""
    rank = len(call.inputs[0].shape)
    gone = {dim(d, rank) for d in acted}
    return moved_dims(call, ((d, d) for d in range(rank) if d not in gone))


def split(call: Call) -> list[Strategy]:
    """split: every dim but the one that is split; that one too where there is one part."""
    whole = len(call.outputs) == 1 and call.out().shape == call.inputs[0].shape
    return _other_dims(call, () if whole else (call.integer("dim"),))


def sliced(call: Call) -> list[Strategy]:
    """slice: as split; the sliced dim too where the slice starts with it and chunks stay the same but for their end."""
    start = _start_slice(call, call.inputs[0].shape, call.out().shape)
    return [*split(call), *([] if start is None else [strategy([start.dim], [start.dim], ties=(start.tie,))])]


@dataclass(frozen=True)
class _Start:
    """A slice of the first elements of a dim, such as all tokens but the last; it has chunks of the same size."""

    dim: int
    tie: Tie


def _start_slice(call: Call, whole: tuple[int, ...], part: tuple[int, ...]) -> _Start | None:
    along = dim(call.integer("dim"), len(whole))
    if slice_bounds(call, whole[along]) != (0, part[along]) or whole == part:
        return None
    return _Start(along, Tie(whole[along], 1, part[along], 1))


def dropped(call: Call) -> list[Strategy]:
    """select, unbind: every dim but the one that is removed."""
    rank = len(call.inputs[0].shape)
    dropped_dim = dim(call.integer("dim"), rank)
    return moved_dims(call, ((d, d - (d > dropped_dim)) for d in range(rank) if d != dropped_dim))


def slice_backward(call: Call) -> list[Strategy]:
    """slice_backward: the gradient of a slice, with zeros around it; along the sliced dim as `sliced` has it."""
    strategies = _sums_only(_other_dims(call, (call.integer("dim"),)))
    start = _start_slice(call, call.out().shape, call.inputs[0].shape)
    if start is not None:
        strategies.append(strategy([start.dim], [start.dim], ties=(start.tie,), fills=(0.0,)))
    return strategies


def select_backward(call: Call) -> list[Strategy]:
    """select_backward: the gradient of a select, with zeros around it."""
    rank = len(call.out().shape)
    new = dim(call.integer("dim"), rank)
    strategies = [strategy([d], [d - (d > new)]) for d in range(rank) if d != new]
    return [*strategies, uniform(call, P, P)]


def slice_scatter(call: Call) -> list[Strategy]:
    """slice_scatter: every dim but the sliced one."""
    return _other_dims(call, (call.integer("dim"),))


def select_scatter(call: Call) -> list[Strategy]:
    """select_scatter: every dim but the selected one."""
    rank = len(call.out().shape)
    selected = dim(call.integer("dim"), rank)
    return [strategy([d], [d, d - (d > selected)]) for d in range(rank) if d != selected] + moved_dims(call, ())


def cat(call: Call) -> list[Strategy]:
    """cat: all parts have the same placement; the empty 1-d tensors that it ignores are replicated."""
    rank = len(call.out().shape)
    along = dim(call.integer("dim"), rank)
    has_elements = [len(meta.shape) == rank and meta.shape != (0,) for meta in call.inputs]
    strategies = [
        strategy([d], [d if concatenated else R for concatenated in has_elements]) for d in range(rank) if d != along
    ]
    return strategies + moved_dims(call, ())


def stack(call: Call) -> list[Strategy]:
    """stack: all parts have the same placement."""
    rank = len(call.out().shape)
    new = dim(call.integer("dim"), rank)
    return moved_dims(call, ((d - (d > new), d) for d in range(rank) if d != new))


def pad(call: Call) -> list[Strategy]:
    """constant_pad_nd: the dims that are not padded, those of space with halos; a partial sum where the padding is
    zero."""
    rank, image = len(call.inputs[0].shape), call.inputs[0]
    amounts = call.integers("pad")
    padded = {rank - 1 - i // 2 for i, amount in enumerate(amounts) if amount}
    strategies = [uniform(call, d, d) for d in range(rank) if d not in padded]
    for d in sorted(padded) if image.dtype.is_floating_point else ():
        window = padding_window(image.shape[d], call.out().shape[d], amounts[2 * (rank - 1 - d)])
        if d > 1:
            strategies.append(
                replace(uniform(call, d, d), fills=(_value(call),), lowering=Lowering.HALO, window=window)
            )
    return strategies + ([linear(call, "self")] if call.operands["value"] == 0 else [])


def _value(call: Call) -> float:
    value = call.operands["value"]
    return float(value) if isinstance(value, int | float) else 0.0


def repeat(call: Call) -> list[Strategy]:
    """repeat: the dims that are repeated once."""
    before, after = call.inputs[0].shape, call.out().shape
    new = len(after) - len(before)
    return moved_dims(call, ((d, d + new) for d in range(len(before)) if call.integers("repeats")[d + new] == 1))


def triangle(call: Call) -> list[Strategy]:
    """tril, triu: every dim but the last two."""
    return _sums_only(_other_dims(call, (-1, -2)))


def unflipped(call: Call) -> list[Strategy]:
    """flip, roll: the dims that are not flipped or rolled."""
    dims = call.integers("dims")
    return _other_dims(call, dims if dims else range(len(call.inputs[0].shape)))


def _sums_only(strategies: list[Strategy]) -> list[Strategy]:
    """Without partial max and min, whose reduction the zeros would change."""
    return [
        candidate for candidate in strategies if not any(isinstance(p, Partial) and p != P for p in candidate.inputs)
    ]


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
    "aten.slice.Tensor": sliced,
    **dict.fromkeys(("aten.split.Tensor", "aten.split_with_sizes.default"), split),
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
    "aten.roll.default": unflipped,
}
