"""Rules of norms whose statistics span images: batch norm, over the whole batch, and group norm, over channel groups.

Shapes are (batch, channels, *space). Over a batch that ranks share, the statistics of batch norm are reduced inside the
op (`spmd/batch_norm.py`): they are those of the whole batch, and no rank holds all of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ....ir.placement import AxisPlacement, Shard
from .builders import P, R, Rule, linear, row
from .call import Call
from .strategy import Lowering, Row, TensorMeta, Tie

_WIDE = ("input", "grad_out")
"""The operands that have the shape of the image; the others are one number a channel."""


def batch_norm(call: Call) -> list[Row]:
    """Batch norm -> (y, mean, 1 / deviation, updated statistics ...): by channels, and by all other dims.

    Where it does not train it only scales, so that nothing is reduced.
    """
    rank = len(call.meta("input").shape)
    lowering = Lowering.STATISTICS if _trains(call) else None
    rows = [_by_channel(call, [1, *[0] * (len(call.outputs) - 1)])]
    for d in (0, *range(2, rank)):
        given = _images(call, d)
        fills = tuple(None if p is None else 0.0 for p in given) if lowering else ()
        rows.append(row([d, *[None] * (len(call.outputs) - 1)], given, lowering=lowering, fills=fills))
    return rows


def batch_norm_backward(call: Call) -> list[Row]:
    """Backward of batch norm -> (dx, dweight, dbias): by channels, and by all other dims; linear in grad_out."""
    rank = len(call.meta("input").shape)
    rows = [_by_channel(call, [1, 0, 0]), linear(call, "grad_out")]
    for d in (0, *range(2, rank)):
        given = _images(call, d)
        if call.flag("train"):
            fills = tuple(None if p is None else 0.0 for p in given)
            rows.append(row([d, None, None], given, lowering=Lowering.STATISTICS, fills=fills))
        else:
            rows.append(row([d, P, P], given))
    return rows


def _trains(call: Call) -> bool:
    """Whether the statistics are those of the batch: as the op says, or because it is given no others."""
    if "no_training" in call.op:
        return False
    return call.flag("training") or call.maybe("running_mean") is None


def _images(call: Call, d: int) -> list[int | None]:
    return [d if name in _WIDE else None for name in call.names()]


def _by_channel(call: Call, outputs: Sequence[int]) -> Row:
    """By channels; results that the op leaves empty stay whole."""
    made = [_unless_empty(meta, place) for meta, place in zip(call.outputs, outputs, strict=True)]
    given = [1 if name in _WIDE else 0 for name in call.names()]
    return row(made, [_unless_empty(meta, place) for meta, place in zip(call.inputs, given, strict=True)])


def _unless_empty(meta: TensorMeta | None, place: int) -> AxisPlacement:
    return R if meta is not None and 0 in meta.shape else Shard(place)


def group_norm(call: Call) -> list[Row]:
    """native_group_norm(input, weight?, bias?) -> (y, mean, 1 / deviation): by batch, by channels between groups."""
    whole = [0 if name == "input" else None for name in call.names()]
    cut = [1 if name == "input" else 0 for name in call.names()]
    return [row([0, 0, 0], whole), row([1, 1, 1], cut, ties=_between_groups(call))]


def group_norm_backward(call: Call) -> list[Row]:
    """native_group_norm_backward(grad_out, input, mean, rstd, weight?) -> (dx, dweight, dbias); linear in grad_out.

    Where dx is not wanted, nothing tells a rank's sizes: every rank computes all.
    """
    rows = [linear(call, "grad_out")]
    if call.outputs[0] is None:
        return rows
    whole = [None if name == "weight" else 0 for name in call.names()]
    cut = [0 if name == "weight" else 1 for name in call.names()]
    return [*rows, row([0, P, P], whole), row([1, 0, 0], cut, ties=_between_groups(call))]


def _between_groups(call: Call) -> tuple[Tie, ...]:
    """Chunks of channels that hold whole groups."""
    groups, channels = call.integer("group"), call.meta("input").shape[1]
    return (Tie(groups, channels // groups, channels, 1),)


TABLE: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "aten.native_batch_norm.default",
            "aten._native_batch_norm_legit.no_stats",
            "aten._native_batch_norm_legit_functional.default",
            "aten._native_batch_norm_legit_no_training.default",
        ),
        batch_norm,
    ),
    "aten.native_batch_norm_backward.default": batch_norm_backward,
    "aten.native_group_norm.default": group_norm,
    "aten.native_group_norm_backward.default": group_norm_backward,
}
