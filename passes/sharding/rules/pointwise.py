"""Rules of pointwise ops that DTensor does not list, and of ops that work on windows or on pairs of one dim."""

from __future__ import annotations

from .builders import P, Rule, dim, everywhere, linear, row
from .call import Call
from .strategy import Row


def pointwise(call: Call) -> list[Row]:
    """Every dim of the result; operands broadcast. A gradient is linear in the gradient that it is made of."""
    shape = call.out().shape
    rows = []
    for d, extent in enumerate(shape):
        given = []
        for meta in call.inputs:
            place = d - len(shape) + len(meta.shape)
            given.append(place if place >= 0 and meta.shape[place] == extent else None)
        made = [d if meta is not None and meta.shape == shape else None for meta in call.outputs]
        rows.append(row(made, given))
    return [*rows, linear(call, "grad_output")] if "grad_output" in call.names() else rows


def halves(call: Call) -> list[Row]:
    """glu: every dim but the one that is halved."""
    rank = len(call.inputs[0].shape)
    along = dim(call.integer("dim"), rank)
    return [everywhere(call, d, d) for d in range(rank) if d != along]


def examples(call: Call) -> list[Row]:
    """pixel_shuffle, im2col and their like: the dims before channels and space, which the op mixes."""
    mixed = 2 if call.op.startswith("aten.col2im") else 3
    return [everywhere(call, d, d) for d in range(len(call.inputs[0].shape) - mixed)]


def windows(call: Call) -> list[Row]:
    """unfold: every dim but the one that windows are taken of."""
    rank = len(call.inputs[0].shape)
    along = dim(call.integer("dimension"), rank)
    return [row([d], [d]) for d in range(rank) if d != along]


def windows_backward(call: Call) -> list[Row]:
    """unfold_backward: as unfold; linear."""
    rank = len(call.out().shape)
    along = dim(call.integer("dim"), rank)
    return [*(row([d], [d]) for d in range(rank) if d != along), linear(call, "grad_in")]


def weight_norm(call: Call) -> list[Row]:
    """_weight_norm_interface and its backward: by the dim that has norms of its own."""
    return [everywhere(call, call.integer("dim"), call.integer("dim"))]


def index_add(call: Call) -> list[Row]:
    """index_add: every dim but the indexed one; linear in the tensor and what is added."""
    rank = len(call.meta("self").shape)
    along = dim(call.integer("dim"), rank) if rank else 0
    rows = [row([d], [d, None, d]) for d in range(rank) if d != along]
    return [*rows, linear(call, "self", "source")]


_POINTWISE = (
    "floor_divide.default", "floor_divide.Scalar", "fill.Scalar", "fill.Tensor", "copy.default", "masked_fill.Tensor",
    "rsub.Tensor", "isin.Tensor_Scalar", "hardswish.default", "log_sigmoid_forward.default", "_prelu_kernel.default",
    "softplus_backward.default", "leaky_relu_backward.default", "hardswish_backward.default",
    "hardsigmoid_backward.default", "hardshrink_backward.default", "softshrink_backward.default",
    "elu_backward.default", "hardtanh_backward.default", "log_sigmoid_backward.default",
    "mish_backward.default",
    "_prelu_kernel_backward.default", "_masked_scale.default",
)  # fmt: skip


def scatter_reduce(call: Call) -> list[Row]:
    """scatter_reduce: every dim but the scattered one, where the operands have the same extents."""
    shape = call.meta("self").shape
    along = dim(call.integer("dim"), len(shape)) if shape else 0
    shapes = [call.meta(name).shape for name in ("self", "index", "src")]
    kept = [d for d in range(len(shape)) if d != along and len({each[d] for each in shapes}) == 1]
    return [row([d], [d, d, d], fills=(None, 0.0, None)) for d in kept]


def cross(call: Call) -> list[Row]:
    """linalg_cross: every dim but that of the three components, where the operands do not broadcast."""
    rank, shapes = len(call.out().shape), {meta.shape for meta in call.inputs}
    along = dim(call.integer("dim"), rank)
    return [everywhere(call, d, d) for d in range(rank) if d != along] if len(shapes) == 1 else []


def matrix_vector(call: Call) -> list[Row]:
    """mv: by rows, and by columns (a partial sum)."""
    return [row([0], [0, None]), row([P], [1, 0]), linear(call, "self"), linear(call, "vec")]


def searched(call: Call) -> list[Row]:
    """searchsorted in one sorted row: by the values that are looked for."""
    if len(call.meta("sorted_sequence").shape) != 1 or call.maybe("sorter") is not None:
        return []
    return [row([d], [None, d]) for d in range(len(call.out().shape))]


TABLE: dict[str, Rule] = {
    "aten.scatter_reduce.two": scatter_reduce,
    "aten.linalg_cross.default": cross,
    "aten.mv.default": matrix_vector,
    "aten.searchsorted.Tensor": searched,
    **dict.fromkeys((f"aten.{name}" for name in _POINTWISE), pointwise),
    **dict.fromkeys(("aten.glu.default", "aten.glu_backward.default"), halves),
    **dict.fromkeys(("aten.pixel_shuffle.default", "aten.pixel_unshuffle.default"), examples),
    **dict.fromkeys(("aten.channel_shuffle.default", "aten.im2col.default", "aten.col2im.default"), examples),
    "aten.unfold.default": windows,
    "aten.unfold_backward.default": windows_backward,
    **dict.fromkeys(
        ("aten._weight_norm_interface.default", "aten._weight_norm_interface_backward.default"), weight_norm
    ),
    "aten.index_add.default": index_add,
}
