"""Rules of norms whose statistics span images: batch norm, over the whole batch, and group norm, over channel groups.

Shapes are (batch, channels, *space). Over a sharded batch, batch norm reduces its statistics inside the op
(`passes/partition/batch_norm.py`): they are those of the global batch, and no rank holds all of it. So does group norm
over sharded space (`passes/partition/images/group_norm.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from ....ir.placement import AxisPlacement, Shard
from .builders import P, R, Rule, linear, strategy
from .call import Call
from .strategy import Lowering, Strategy, TensorMeta, Tie

_WIDE = ("input", "grad_out")
"""The operands that have the shape of the image; the others have one element per channel."""


def batch_norm(call: Call) -> list[Strategy]:
    """Batch norm -> (y, mean, 1 / deviation, updated statistics ...): by channels, and by all other dims.

    In eval mode it only scales, so nothing is reduced.
    """
    rank = len(call.meta("input").shape)
    lowering = Lowering.STATISTICS if _trains(call) else None
    strategies = [_by_channel(call, [1, *[0] * (len(call.outputs) - 1)])]
    for d in (0, *range(2, rank)):
        inputs = _images(call, d)
        fills = tuple(None if p is None else 0.0 for p in inputs) if lowering else ()
        strategies.append(strategy([d, *[None] * (len(call.outputs) - 1)], inputs, lowering=lowering, fills=fills))
    return strategies


def batch_norm_backward(call: Call) -> list[Strategy]:
    """Backward of batch norm -> (dx, dweight, dbias): by channels, and by all other dims; linear in grad_out."""
    rank = len(call.meta("input").shape)
    strategies = [_by_channel(call, [1, 0, 0]), linear(call, "grad_out")]
    for d in (0, *range(2, rank)):
        inputs = _images(call, d)
        if call.flag("train"):
            fills = tuple(None if p is None else 0.0 for p in inputs)
            strategies.append(strategy([d, None, None], inputs, lowering=Lowering.STATISTICS, fills=fills))
        else:
            strategies.append(strategy([d, P, P], inputs))
    return strategies


def _trains(call: Call) -> bool:
    """Whether the statistics are computed from the batch: in training, or without running statistics."""
    if "no_training" in call.op:
        return False
    return call.flag("training") or call.maybe("running_mean") is None


def _images(call: Call, d: int) -> list[int | None]:
    return [d if name in _WIDE else None for name in call.names()]


def _by_channel(call: Call, outputs: Sequence[int]) -> Strategy:
    """By channels; results that the op leaves empty are replicated."""
    output_placements = [_unless_empty(meta, d) for meta, d in zip(call.outputs, outputs, strict=True)]
    inputs = [1 if name in _WIDE else 0 for name in call.names()]
    return strategy(output_placements, [_unless_empty(meta, d) for meta, d in zip(call.inputs, inputs, strict=True)])


def _unless_empty(meta: TensorMeta | None, d: int) -> AxisPlacement:
    return R if meta is not None and 0 in meta.shape else Shard(d)


def group_norm(call: Call) -> list[Strategy]:
    """native_group_norm(input, weight?, bias?) -> (y, mean, 1 / deviation): by batch, by channels between groups, by
    space."""
    by_batch = [0 if name == "input" else None for name in call.names()]
    by_channels = [1 if name == "input" else 0 for name in call.names()]
    return [
        strategy([0, 0, 0], by_batch),
        strategy([1, 1, 1], by_channels, ties=_between_groups(call)),
        *(_by_space(call, d, [d, None, None]) for d in range(2, len(call.meta("input").shape))),
    ]


def _by_space(call: Call, d: int, outputs: Sequence[int | AxisPlacement | None]) -> Strategy:
    """By one dim of space, over which sums are reduced inside the op."""
    inputs = _images(call, d)
    fills = tuple(None if p is None else 0.0 for p in inputs)
    return strategy(outputs, inputs, lowering=Lowering.STATISTICS, fills=fills)


def group_norm_backward(call: Call) -> list[Strategy]:
    """native_group_norm_backward(grad_out, input, mean, rstd, weight?) -> (dx, dweight, dbias); linear in grad_out.

    Without dx no output determines a rank's local sizes: every rank computes all.
    """
    strategies = [linear(call, "grad_out")]
    if call.outputs[0] is None:
        return strategies
    by_batch = [None if name == "weight" else 0 for name in call.names()]
    by_channels = [0 if name == "weight" else 1 for name in call.names()]
    return [
        *strategies,
        strategy([0, P, P], by_batch),
        strategy([1, 0, 0], by_channels, ties=_between_groups(call)),
        *(_by_space(call, d, [d, P, P]) for d in range(2, len(call.meta("input").shape))),
    ]


def _between_groups(call: Call) -> tuple[Tie, ...]:
    """A chunk of channels must consist of whole groups."""
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
