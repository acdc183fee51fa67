"""Rules of pointwise ops that DTensor does not list, and of ops that fit no other file, such as windows and `cross`."""

from __future__ import annotations

from ....ops.overloads import UNTAGGED
from .builders import P, Rule, dim, linear, strategy, uniform
from .call import Call
from .strategy import Strategy


def pointwise(call: Call) -> list[Strategy]:
    """Every dim of the result; operands broadcast. A backward is linear in `grad_output`."""
    shape = call.out().shape
    strategies = []
    for d, extent in enumerate(shape):
        inputs = []
        for meta in call.inputs:
            position = d - len(shape) + len(meta.shape)
            inputs.append(position if position >= 0 and meta.shape[position] == extent else None)
        outputs = [d if meta is not None and meta.shape == shape else None for meta in call.outputs]
        strategies.append(strategy(outputs, inputs))
    return [*strategies, linear(call, "grad_output")] if "grad_output" in call.names() else strategies


def glu(call: Call) -> list[Strategy]:
    """glu: every dim but the one that is split in halves."""
    rank = len(call.inputs[0].shape)
    along = dim(call.integer("dim"), rank)
    return [uniform(call, d, d) for d in range(rank) if d != along]


def batch_dims(call: Call) -> list[Strategy]:
    """pixel_shuffle, im2col and similar ops: the dims before channels and space, which the op mixes."""
    mixed = 2 if call.op.startswith("aten.col2im") else 3
    return [uniform(call, d, d) for d in range(len(call.inputs[0].shape) - mixed)]


def windows(call: Call) -> list[Strategy]:
    """unfold: every dim but the unfolded one."""
    rank = len(call.inputs[0].shape)
    along = dim(call.integer("dimension"), rank)
    return [strategy([d], [d]) for d in range(rank) if d != along]


def windows_backward(call: Call) -> list[Strategy]:
    """unfold_backward: as unfold; linear."""
    rank = len(call.out().shape)
    along = dim(call.integer("dim"), rank)
    return [*(strategy([d], [d]) for d in range(rank) if d != along), linear(call, "grad_in")]


def weight_norm(call: Call) -> list[Strategy]:
    """_weight_norm_interface and its backward: by the dim whose indices are normalised separately."""
    return [uniform(call, call.integer("dim"), call.integer("dim"))]


def cross(call: Call) -> list[Strategy]:
    """linalg_cross: every dim but that of the three components, where the operands do not broadcast."""
    rank, shapes = len(call.out().shape), {meta.shape for meta in call.inputs}
    along = dim(call.integer("dim"), rank)
    return [uniform(call, d, d) for d in range(rank) if d != along] if len(shapes) == 1 else []


def matrix_vector(call: Call) -> list[Strategy]:
    """mv: by rows, and by columns (a partial sum)."""
    return [strategy([0], [0, None]), strategy([P], [1, 0]), linear(call, "self"), linear(call, "vec")]


def searchsorted(call: Call) -> list[Strategy]:
    """searchsorted in a 1-d sorted sequence: by the dims of the values."""
    if len(call.meta("sorted_sequence").shape) != 1 or call.maybe("sorter") is not None:
        return []
    return [strategy([d], [None, d]) for d in range(len(call.out().shape))]


TABLE: dict[str, Rule] = {
    "aten.linalg_cross.default": cross,
    "aten.mv.default": matrix_vector,
    "aten.searchsorted.Tensor": searchsorted,
    **dict.fromkeys((f"aten.{name}" for name in UNTAGGED), pointwise),
    **dict.fromkeys(("aten.glu.default", "aten.glu_backward.default"), glu),
    **dict.fromkeys(("aten.pixel_shuffle.default", "aten.pixel_unshuffle.default"), batch_dims),
    **dict.fromkeys(("aten.channel_shuffle.default", "aten.im2col.default", "aten.col2im.default"), batch_dims),
    "aten.unfold.default": windows,
    "aten.unfold_backward.default": windows_backward,
    **dict.fromkeys(
        ("aten._weight_norm_interface.default", "aten._weight_norm_interface_backward.default"), weight_norm
    ),
}
