"""The windows of pooling, padding and resampling, from the op's own arguments; none where no window says what is read.

Resampling has one where it is by a whole factor: positions of samples are then linear in the place of an output. With
`align_corners`, by a fraction, or with weights of an antialiasing filter they are not, and the dim stays whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

import torch

from .call import Call
from .windows import Edge, Window

_TAPS = {"linear": 1, "cubic": 2}
"""How many inputs on each side of a place an interpolation reads."""


def plane_dims(op: str) -> int:
    """How many dims of space an op works on."""
    match = re.search(r"([123])d", op)
    return int(match[1]) if match else 0


def plane_windows(call: Call) -> Iterator[tuple[int, Window]]:
    """(dim, window) of each dim of space that ranks may cut."""
    backward, spaces = "_backward" in call.op, plane_dims(call.op)
    outputs = call.meta("grad_output").shape if backward else call.out().shape
    inputs = call.out().shape if backward else call.meta("self").shape
    first = len(inputs) - spaces
    for d in range(first, len(inputs)):
        window = _window(call, d - first, spaces, (inputs[d], outputs[d]))
        if window is not None:
            yield d, window


def padding_window(inputs: int, outputs: int, before: int, edge: Edge = Edge.FILL) -> Window:
    """That of padding by `before` elements at the start; a negative number cuts them off."""
    return Window(inputs, outputs, -before, edge=edge)


def _window(call: Call, space: int, spaces: int, extents: tuple[int, int]) -> Window | None:
    if "adaptive_avg_pool" in call.op:
        return _by_factor(*extents)
    if "_pool" in call.op and "adaptive" not in call.op:
        return _of_pool(call, space, extents)
    if "_pad" in call.op:
        edge = Edge.REFLECT if "reflection" in call.op else Edge.CLAMP
        return padding_window(*extents, call.integers("padding")[2 * (spaces - 1 - space)], edge)
    if "upsample" in call.op and not call.op.endswith("_aa.default") and "_aa_" not in call.op:
        return _of_resampling(call, space, extents)
    return None


def _of_pool(call: Call, space: int, extents: tuple[int, int]) -> Window | None:
    inputs, outputs = extents
    kernels, strides = call.integers("kernel_size"), call.integers("stride") or call.integers("kernel_size")
    paddings, dilations = call.integers("padding"), call.integers("dilation") if "max_" in call.op else (1,)
    kernel, stride, padding, dilation = (given[space % len(given)] for given in (kernels, strides, paddings, dilations))
    extent = dilation * (kernel - 1) + 1
    if "avg_" in call.op and call.operands.get("divisor_override") is None:
        beyond = (outputs - 1) * stride - padding + extent > inputs + padding
        if beyond or (padding and not call.flag("count_include_pad")):
            return None  # outputs at the ends divide by other counts
    return Window(inputs, outputs, -padding, extent, stride)


def _by_factor(inputs: int, outputs: int) -> Window | None:
    """Each output reads a block of its own."""
    return None if inputs % outputs else Window(inputs, outputs, 0, inputs // outputs, inputs // outputs)


def _of_resampling(call: Call, space: int, extents: tuple[int, int]) -> Window | None:
    inputs, outputs = extents
    scales = [call.operands[name] for name in call.operands if name.startswith("scales")]
    scale = scales[space] if scales else None
    if scale not in (None, outputs / inputs) or call.flag("align_corners"):
        return None
    if inputs == outputs:
        return Window(inputs, outputs)
    kind = next((kind for kind in _TAPS if kind in call.op), "nearest")
    if outputs < inputs:
        return None if kind == "cubic" else _by_factor(inputs, outputs)
    if outputs % inputs or (kind == "nearest" and not _repeats(call.op.startswith("aten._"), inputs, outputs)):
        return None
    factor = outputs // inputs
    if kind == "nearest":
        return Window(inputs, outputs, 0, factor, up=factor, span=factor)
    # output o lies at (o + 1/2) / factor - 1/2 and reads the inputs around it; beyond the ends, the outermost one
    further = (_TAPS[kind] - 1) * factor
    first, extent = -((factor + 1) // 2) - further, 2 * factor + 2 * further
    return Window(inputs, outputs, first, extent, up=factor, edge=Edge.CLAMP, span=factor)


@cache
def _repeats(exact: bool, inputs: int, outputs: int) -> bool:
    """Whether torch, which computes places in float32, gives each input to as many outputs."""
    op = torch.ops.aten._upsample_nearest_exact1d if exact else torch.ops.aten.upsample_nearest1d
    places = torch.arange(inputs, dtype=torch.float64).repeat_interleave(outputs // inputs)
    return bool(op(torch.arange(inputs, dtype=torch.float64)[None, None], [outputs])[0, 0].equal(places))
