"""Rules of convolutions, and of ops that work on each plane of an image by itself: pooling and resampling.

Shapes are (batch, channels, *space). Where a spatial dim is sharded, ranks exchange halos (`windows.py`,
`passes/partition/images/`), so that each computes the outputs of its own chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import inf

from .builders import P, R, Rule, linear, strategy, uniform
from .call import Call
from .plane_windows import plane_dims, plane_windows
from .strategy import Lowering, Strategy, Tie
from .windows import Window


def convolution(call: Call) -> list[Strategy]:
    """convolution(input, weight, bias?) -> output: by batch, by output channels, by input channels (a partial sum).

    In a grouped convolution, input and output channels are sharded together, between groups.
    """
    if len(call.meta("input").shape) != len(call.meta("weight").shape):
        return []
    bias = 1 if call.maybe("bias") else 0
    output_channels, input_channels = (1, 0) if call.flag("transposed") else (0, 1)
    strategies = [strategy([0], [0, None, *[None] * bias]), linear(call, "input", "bias")]
    for d, window in _windows(call, call.out().shape):
        strategies.append(_cut(strategy([d], [d, None, *[None] * bias]), window))
    if call.integer("groups") > 1:
        return [*strategies, strategy([1], [1, 0, *[0] * bias], ties=_between_groups(call, call.out().shape[1]))]
    return [
        *strategies,
        strategy([1], [None, output_channels, *[0] * bias]),
        strategy([P], [1, input_channels, *[P] * bias]),
    ]


def convolution_backward(call: Call) -> list[Strategy]:
    """convolution_backward(grad_output, input, weight) -> (input, weight and bias gradients); linear in grad_output."""
    if len(call.meta("input").shape) != len(call.meta("weight").shape):
        return []
    output_channels, input_channels = (1, 0) if call.flag("transposed") else (0, 1)
    strategies = [strategy([0, P, P], [0, 0, None]), linear(call, "grad_output")]
    for d, window in _windows(call, call.meta("grad_output").shape):
        strategies.append(_cut(strategy([d, P, P], [d, d, None], fills=(0.0, 0.0, None)), window))
    if call.integer("groups") > 1:
        return [
            *strategies,
            strategy([1, 0, 0], [1, 1, 0], ties=_between_groups(call, call.meta("grad_output").shape[1])),
        ]
    return [
        *strategies,
        strategy([P, output_channels, 0], [1, None, output_channels]),
        strategy([1, input_channels, None], [None, 1, input_channels]),
    ]


def _windows(call: Call, outputs: tuple[int, ...]) -> Iterator[tuple[int, Window]]:
    """How a convolution reads each spatial dim."""
    inputs, weight = call.meta("input").shape, call.meta("weight").shape
    strides, paddings, dilations = (call.integers(name) for name in ("stride", "padding", "dilation"))
    for d in range(2, len(inputs)):
        stride, padding, dilation = (given[(d - 2) % len(given)] for given in (strides, paddings, dilations))
        extent = dilation * (weight[d] - 1) + 1
        if call.flag("transposed"):
            window = Window(inputs[d], outputs[d], -padding, extent, up=stride, origin=-padding, span=extent)
        else:
            window = Window(inputs[d], outputs[d], -padding, extent, stride)
        yield d, window


def _cut(sharded: Strategy, window: Window, fill: float = 0.0) -> Strategy:
    """The strategy with the halo that the window needs; none where each output reads its own input alone.

    The padding of the last chunk lies beyond the end of the dim, where the op reads `fill`.
    """
    if window.is_local:
        return sharded
    fills = sharded.fills or tuple(None if placement == R else fill for placement in sharded.inputs)
    return replace(sharded, fills=fills, lowering=Lowering.HALO, window=window)


def _between_groups(call: Call, outputs: int) -> tuple[Tie, ...]:
    """Chunks of input and output channels must consist of whole groups."""
    groups, inputs = call.integer("groups"), call.meta("input").shape[1]
    return tuple(Tie(groups, n // groups, n, 1) for n in (inputs, outputs))


def planes(call: Call) -> list[Strategy]:
    """Pooling, padding and resampling: every dim before the planes; those of the planes with halos, as far as what an
    output reads is linear in its place; partial sums pass through where the op is linear."""
    leading = range(len(call.inputs[0].shape) - plane_dims(call.op))
    indices = [meta.dtype.is_floating_point for meta in call.inputs]
    fills = () if all(indices) else tuple(None if floating else 0.0 for floating in indices)
    strategies = [strategy([d] * len(call.outputs), [d] * len(call.inputs), fills=fills) for d in leading]
    fill = -inf if "max_" in call.op and "_backward" not in call.op else 0.0
    strategies += [_cut(uniform(call, d, d), window, fill) for d, window in plane_windows(call)]
    if "_backward" in call.op:
        return [*strategies, linear(call, "grad_output")]
    return strategies if "max_" in call.op else [*strategies, uniform(call, P, P)]


def shuffled(call: Call) -> list[Strategy]:
    """pixel_shuffle and pixel_unshuffle: the dims before the channels, and rows where chunks hold whole blocks."""
    before, after = call.inputs[0].shape, call.out().shape
    rank = len(before)
    strategies = [strategy([d], [d]) for d in range(rank - 3)]
    for d in (rank - 2, rank - 1):
        coarse = min(before[d], after[d])
        tie = Tie(before[d], after[d] // coarse, after[d], before[d] // coarse)
        strategies.append(strategy([d], [d], ties=(tie,)))
    return [*strategies, uniform(call, P, P)]


_PLANES = (
    "max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "max_pool2d_with_indices_backward", "max_pool3d_with_indices_backward",
    "adaptive_max_pool2d_backward", "adaptive_max_pool3d_backward",
    "avg_pool2d", "avg_pool3d", "avg_pool2d_backward", "avg_pool3d_backward",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d",
    "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
    "upsample_nearest1d_backward", "upsample_nearest2d_backward", "upsample_nearest3d_backward",
    "_upsample_nearest_exact1d_backward", "_upsample_nearest_exact2d_backward", "_upsample_nearest_exact3d_backward",
    "upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_trilinear3d_backward",
    "upsample_bicubic2d_backward", "_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d",
    "replication_pad1d", "replication_pad2d", "replication_pad3d",
    "reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward",
    "replication_pad1d_backward", "replication_pad2d_backward", "replication_pad3d_backward",
)  # fmt: skip

PLANE_SIZES = tuple(
    f"aten.{name}.default" for name in _PLANES
    if "upsample" in name or ("adaptive" in name and not name.endswith("_backward"))
)  # fmt: skip
"""Ops that take the extents of the planes that they make."""

TABLE: dict[str, Rule] = {
    "aten.convolution.default": convolution,
    "aten.convolution_backward.default": convolution_backward,
    **dict.fromkeys((f"aten.{name}.default" for name in _PLANES), planes),
    **dict.fromkeys(("aten.pixel_shuffle.default", "aten.pixel_unshuffle.default"), shuffled),
}
