"""Rewrite a call's global sizes to those of one rank: the shapes that `view`, `expand`, `full` and their like state.

Rules name placements; ops that carry a size in their attributes carry the global one. All such sizes follow from the
local shapes of the results, so that nothing here depends on which axes shard what, nor on how many do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...ir.placement import AxisPlacement, Shard, chunk_size
from .building import dim
from .call import bind
from .row import Row, TensorMeta

Shape = tuple[int, ...]
LocalCall = tuple[str, tuple[object, ...], dict[str, object]]

_SLICE = "aten.slice.Tensor"
_SIZE_OPERAND = {
    **dict.fromkeys(("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default"), "size"),
    **dict.fromkeys(("aten.view_copy.default", "aten.expand.default"), "size"),
    **dict.fromkeys(("aten.full.default", "aten.zeros.default", "aten.ones.default"), "size"),
    **dict.fromkeys(("aten.empty.memory_format", "aten.new_full.default", "aten.new_zeros.default"), "size"),
    **dict.fromkeys(("aten.new_ones.default", "aten.new_empty.default"), "size"),
    **dict.fromkeys(("aten.slice_backward.default", "aten.select_backward.default"), "input_sizes"),
    "aten.reshape.default": "shape",
}
"""The operand of each op that states the shape of its result."""

_EXTENT_OPERAND = {"aten.embedding_dense_backward.default": "num_weights", "aten.native_group_norm.default": "N"}
"""The operand of each op that states the first extent of its result."""

_RESHAPES = frozenset(
    {
        "aten.squeeze.default",
        "aten.squeeze.dim",
        "aten.squeeze.dims",
        "aten.flatten.using_ints",
        "aten.unflatten.int",
    }
)
"""Ops that read the operand's extents (a chunk of one element would be squeezed away): locally a plain reshape."""


def local_shape(meta: TensorMeta, placement: AxisPlacement | None, parts: int) -> Shape:
    """The padded shape of a rank's part when the dim that `placement` shards is cut into `parts`."""
    if not isinstance(placement, Shard):
        return meta.shape
    return tuple(chunk_size(n, parts) if d == placement.dim else n for d, n in enumerate(meta.shape))


def localize(
    op: str,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    outputs: tuple[TensorMeta | None, ...],
    row: Row,
    parts: int,
) -> LocalCall:
    """The call that one rank makes under `row` on an axis of size `parts`; see `with_local_sizes`."""
    shapes = [
        None if meta is None else local_shape(meta, placement, parts)
        for meta, placement in zip(outputs, row.outputs, strict=True)
    ]
    return with_local_sizes(op, args, kwargs, outputs, shapes)


def with_local_sizes(
    op: str,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    outputs: tuple[TensorMeta | None, ...],
    local_outputs: Sequence[Shape | None],
) -> LocalCall:
    """The call that one rank makes, whose results have the shapes `local_outputs`, under placements that rules allow.

    Tensors in `args` and `kwargs` may be anything (values, names, TensorMeta): they are passed along untouched, and so
    is what is no size. The op itself may change (`squeeze` becomes `reshape`).
    """
    shape = local_outputs[0] if local_outputs else None
    whole = outputs[0].shape if outputs and outputs[0] is not None else None
    if shape is None or whole is None or shape == whole:
        return op, args, dict(kwargs)
    if op in _RESHAPES:
        return "aten.reshape.default", (args[0], list(shape)), {}
    if op in _SIZE_OPERAND:
        return (op, *_with(op, args, kwargs, _SIZE_OPERAND[op], list(shape)))
    if op in _EXTENT_OPERAND:
        return (op, *_with(op, args, kwargs, _EXTENT_OPERAND[op], shape[0]))
    if op == _SLICE:
        return (op, *_slice(args, kwargs, whole, shape))
    return op, args, dict(kwargs)


def _slice(
    args: tuple[object, ...], kwargs: Mapping[str, object], whole: Shape, shape: Shape
) -> tuple[tuple[object, ...], dict[str, object]]:
    """A slice along a dim that is whole on the rank stays; along a sharded one it takes all of the shard."""
    call = bind(_SLICE, args, kwargs, ())
    if call is None or shape[along := dim(call.integer("dim"), len(shape))] == whole[along]:
        return args, dict(kwargs)
    args, left = _with(_SLICE, args, kwargs, "start", 0)
    return _with(_SLICE, args, left, "end", None)


def _with(
    op: str, args: tuple[object, ...], kwargs: Mapping[str, object], name: str, value: object
) -> tuple[tuple[object, ...], dict[str, object]]:
    """The arguments with operand `name` set to `value`."""
    call = bind(op, args, kwargs, ())
    index = list(call.operands).index(name) if call else len(args)
    if index < len(args):
        return (*args[:index], value, *args[index + 1 :]), dict(kwargs)
    return args, {**kwargs, name: value}
