"""Rewrite a call's global sizes to local ones: the shape operands of `view`, `expand`, `full` and similar ops.

Sharding strategies give placements; the sizes in an op's attributes are still global. All of them follow from the local
shapes of the results, so nothing here depends on the mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ...ir.placement import AxisPlacement, Shard, chunk_size
from ..sharding.rules.builders import dim
from ..sharding.rules.call import Call, bind
from ..sharding.rules.images import PLANE_SIZES
from ..sharding.rules.strategy import Strategy, TensorMeta

Shape = tuple[int, ...]
LocalCall = tuple[str, tuple[object, ...], dict[str, object]]

_SLICE, _SLICE_BACKWARD = "aten.slice.Tensor", "aten.slice_backward.default"
_SIZE_OPERAND = {
    **dict.fromkeys(("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default"), "size"),
    **dict.fromkeys(("aten.view_copy.default", "aten.expand.default"), "size"),
    **dict.fromkeys(("aten.full.default", "aten.zeros.default", "aten.ones.default"), "size"),
    **dict.fromkeys(("aten.empty.memory_format", "aten.new_empty.default"), "size"),
    "aten.select_backward.default": "input_sizes",
    "aten.reshape.default": "shape",
    "aten.unfold_backward.default": "input_sizes",
}
"""The operand of each op that holds the shape of its result."""

_NEW = {f"aten.new_{name}.default": f"aten.{name}.default" for name in ("full", "zeros", "ones")}
"""Ops that read no element of their operand, and those that do the same without one: nothing has to wait for it."""

_EXTENT_OPERAND = {"aten.embedding_dense_backward.default": "num_weights"}
"""The operand of each op that holds the first extent of its result."""

_RESHAPES = frozenset(
    {
        "aten.squeeze.default",
        "aten.squeeze.dim",
        "aten.squeeze.dims",
        "aten.flatten.using_ints",
        "aten.unflatten.int",
    }
)
"""Ops that read the operand's extents (a local extent of 1 would be squeezed away): locally a plain reshape."""


def local_shape(meta: TensorMeta, placement: AxisPlacement | None, parts: int) -> Shape:
    """The padded local shape when the dim that `placement` shards has `parts` chunks."""
    if not isinstance(placement, Shard):
        return meta.shape
    return tuple(chunk_size(n, parts) if d == placement.dim else n for d, n in enumerate(meta.shape))


def localize(
    op: str,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    outputs: tuple[TensorMeta | None, ...],
    strategy: Strategy,
    parts: int,
) -> LocalCall:
    """The call that one rank makes under a sharding strategy on an axis of size `parts`; see `with_local_sizes`."""
    shapes = [
        None if meta is None else local_shape(meta, placement, parts)
        for meta, placement in zip(outputs, strategy.outputs, strict=True)
    ]
    return with_local_sizes(op, args, kwargs, outputs, shapes)


def with_local_sizes(
    op: str,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    outputs: tuple[TensorMeta | None, ...],
    local_outputs: Sequence[Shape | None],
) -> LocalCall:
    """The call that one rank makes, with results of the shapes `local_outputs`, under a legal sharding strategy.

    Tensors in `args` and `kwargs` may be anything (values, names, TensorMeta): they are passed through, and so are
    operands that are no sizes. The op itself may change (`squeeze` becomes `reshape`).
    """
    if op in _SIZES_OF:
        return _with_sizes(op, args, kwargs, outputs, local_outputs)
    shape = local_outputs[0] if local_outputs else None
    if op in _NEW and shape is not None and outputs[0] is not None:
        filled = {name: value for name, value in kwargs.items() if name == "fill_value"}
        return _NEW[op], (list(shape), *args[2:]), {**filled, "dtype": outputs[0].dtype}
    global_shape = outputs[0].shape if outputs and outputs[0] is not None else None
    if shape is None or global_shape is None or shape == global_shape:
        return op, args, dict(kwargs)
    if op in _RESHAPES:
        return "aten.reshape.default", (args[0], list(shape)), {}
    if op == _SLICE_BACKWARD:
        return (op, *_slice_backward(args, kwargs, global_shape, shape))
    if op in _SIZE_OPERAND:
        return (op, *_with(op, args, kwargs, _SIZE_OPERAND[op], list(shape)))
    if op in _EXTENT_OPERAND:
        return (op, *_with(op, args, kwargs, _EXTENT_OPERAND[op], shape[0]))
    if op == _SLICE:
        return (op, *_slice(args, kwargs, global_shape, shape))
    return op, args, dict(kwargs)


def _with_sizes(
    op: str,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    outputs: tuple[TensorMeta | None, ...],
    local_outputs: Sequence[Shape | None],
) -> LocalCall:
    """The local call of an op with several size operands."""
    call = bind(op, args, kwargs, outputs)
    local_kwargs = dict(kwargs)
    if call is not None:
        for name, value in _SIZES_OF[op](call, local_outputs).items():
            args, local_kwargs = _with(op, args, local_kwargs, name, value)
    return op, args, local_kwargs


def _group_norm(call: Call, local: Sequence[Shape | None]) -> dict[str, object]:
    """Local images, channels and groups; a chunk of channels holds whole groups."""
    shape = local[0]
    if shape is None:
        return {}
    groups = call.integer("group") * shape[1] // call.integer("C")
    return {"N": shape[0], "C": shape[1], "group": groups}


def _convolution(call: Call, local: Sequence[Shape | None]) -> dict[str, object]:
    """Local groups of a grouped convolution: a chunk of output channels holds whole groups."""
    shape = local[0]
    if shape is None or call.integer("groups") == 1:
        return {}
    return {"groups": call.integer("groups") * shape[1] // call.out().shape[1]}


def _convolution_backward(call: Call, local: Sequence[Shape | None]) -> dict[str, object]:
    """The bias's local size, and the local groups, from the channels of the input's or the weight's gradient."""
    sizes: dict[str, object] = {} if local[2] is None else {"bias_sizes": list(local[2])}
    if call.integer("groups") == 1:
        return sizes
    for index, d in ((0, 1), (1, 0)):
        global_meta, shape = call.outputs[index], local[index]
        if global_meta is not None and shape is not None:
            return {**sizes, "groups": call.integer("groups") * shape[d] // global_meta.shape[d]}
    return sizes


def _planes(call: Call, local: Sequence[Shape | None]) -> dict[str, object]:
    """Resampled planes, and the shape that a resampling began with; a cut dim is one where each output has an input."""
    shape, whole = local[0], call.out().shape
    if shape is None or call.operands.get("output_size") is None:
        return {}
    sizes = call.integers("output_size")
    first = len(whole) - len(sizes)
    made = [size * shape[first + d] // max(1, whole[first + d]) for d, size in enumerate(sizes)]
    before: dict[str, object] = {"input_size": list(shape)} if "input_size" in call.operands else {}
    return {**before, "output_size": made}


_SIZES_OF: dict[str, Callable[[Call, Sequence[Shape | None]], dict[str, object]]] = {
    "aten.native_group_norm.default": _group_norm,
    "aten.native_group_norm_backward.default": _group_norm,
    "aten.convolution.default": _convolution,
    "aten.convolution_backward.default": _convolution_backward,
    **dict.fromkeys(PLANE_SIZES, _planes),
}
"""Ops with several size operands: the operands to set, from the call and the local shapes of its results."""


def _slice(
    args: tuple[object, ...], kwargs: Mapping[str, object], whole: Shape, shape: Shape
) -> tuple[tuple[object, ...], dict[str, object]]:
    """A slice along a dim that is not sharded is unchanged; along a sharded one it takes the whole chunk."""
    call = bind(_SLICE, args, kwargs, ())
    if call is None or shape[along := dim(call.integer("dim"), len(shape))] == whole[along]:
        return args, dict(kwargs)
    args, local_kwargs = _with(_SLICE, args, kwargs, "start", 0)
    return _with(_SLICE, args, local_kwargs, "end", None)


def _slice_backward(
    args: tuple[object, ...], kwargs: Mapping[str, object], whole: Shape, shape: Shape
) -> tuple[tuple[object, ...], dict[str, object]]:
    """As `_slice`: along a sharded dim the gradient is that of the whole chunk."""
    args, local_kwargs = _with(_SLICE_BACKWARD, args, kwargs, "input_sizes", list(shape))
    call = bind(_SLICE_BACKWARD, args, local_kwargs, ())
    if call is None or shape[along := dim(call.integer("dim"), len(shape))] == whole[along]:
        return args, local_kwargs
    args, local_kwargs = _with(_SLICE_BACKWARD, args, local_kwargs, "start", 0)
    return _with(_SLICE_BACKWARD, args, local_kwargs, "end", shape[along])


def _with(
    op: str, args: tuple[object, ...], kwargs: Mapping[str, object], name: str, value: object
) -> tuple[tuple[object, ...], dict[str, object]]:
    """The arguments with operand `name` set to `value`."""
    call = bind(op, args, kwargs, ())
    index = list(call.operands).index(name) if call else len(args)
    if index < len(args):
        return (*args[:index], value, *args[index + 1 :]), dict(kwargs)
    return args, {**kwargs, name: value}
