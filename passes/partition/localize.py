"""Rewrite a call's global sizes to those of one rank: the shapes that `view`, `expand`, `full` and their like state.

Rules name placements; ops that carry a size in their attributes carry the global one. All such sizes follow from the
local shapes of the results, so that nothing here depends on which axes shard what, nor on how many do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ...ir.placement import AxisPlacement, Shard, chunk_size
from ..sharding.rules.builders import dim
from ..sharding.rules.call import Call, bind
from ..sharding.rules.images import INPUT_SIZES
from ..sharding.rules.strategy import Row, TensorMeta

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
    **dict.fromkeys(INPUT_SIZES, "input_size"),
    "aten.unfold_backward.default": "input_sizes",
}
"""The operand of each op that states the shape of its result."""

_EXTENT_OPERAND = {"aten.embedding_dense_backward.default": "num_weights"}
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
    if op in _SEVERAL:
        return _with_several(op, args, kwargs, outputs, local_outputs)
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


def _with_several(
    op: str,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    outputs: tuple[TensorMeta | None, ...],
    local_outputs: Sequence[Shape | None],
) -> LocalCall:
    """The call of an op that states several sizes, with those that are not what they were."""
    call = bind(op, args, kwargs, outputs)
    left = dict(kwargs)
    if call is not None:
        for name, value in _SEVERAL[op](call, local_outputs).items():
            args, left = _with(op, args, left, name, value)
    return op, args, left


def _group_norm(call: Call, local: Sequence[Shape | None]) -> dict[str, object]:
    """Images, channels and groups; chunks of channels hold whole groups."""
    shape = local[0]
    if shape is None:
        return {}
    groups = call.integer("group") * shape[1] // call.integer("C")
    return {"N": shape[0], "C": shape[1], "group": groups}


def _convolution(call: Call, local: Sequence[Shape | None]) -> dict[str, object]:
    """Groups, where a chunk of the output's channels holds some of them; else there is one group."""
    shape = local[0]
    if shape is None or call.integer("groups") == 1:
        return {}
    return {"groups": call.integer("groups") * shape[1] // call.out().shape[1]}


def _convolution_backward(call: Call, local: Sequence[Shape | None]) -> dict[str, object]:
    """The bias's size, and groups as the channels of the input's or the weight's gradient say."""
    sizes: dict[str, object] = {} if local[2] is None else {"bias_sizes": list(local[2])}
    if call.integer("groups") == 1:
        return sizes
    for at, d in ((0, 1), (1, 0)):
        whole, shape = call.outputs[at], local[at]
        if whole is not None and shape is not None:
            return {**sizes, "groups": call.integer("groups") * shape[d] // whole.shape[d]}
    return sizes


_SEVERAL: dict[str, Callable[[Call, Sequence[Shape | None]], dict[str, object]]] = {
    "aten.native_group_norm.default": _group_norm,
    "aten.native_group_norm_backward.default": _group_norm,
    "aten.convolution.default": _convolution,
    "aten.convolution_backward.default": _convolution_backward,
}
"""Ops that state more than one size: the operands to set, from the call and the local shapes of its results."""


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
