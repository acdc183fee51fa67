"""Operations that take each row alone, and sums over rows: on rows whose dims are apart, for `keep-dims-apart`.

Before                                          After
  %1 = aten.reshape %x to (B*S, V)                %2 = aten._log_softmax %x, 2
  %2 = aten._log_softmax %1, 1                    %3 = aten.reshape %2 to (B*S, V)

Each pattern takes the merge of an operand's rows past its operation, so that it ends where rows are summed or split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...ir.bindings import Value
from ...ir.dialects.schemas import definitions
from ...ir.operations import Call, build
from ...ir.types import TensorType, from_mlir, to_mlir
from ...ops.overloads import is_pointwise
from ..rewriting import Applied, Emitter, Outcome, Pattern, Site
from .idioms.canonical import defaults
from .merged_rows import Dims, Merged, apart, first_merged, merged, replace_taken_apart, reshaped, type_apart
from .row_indexing import look_up, look_up_backward, put

_APPLIED = Applied("row by row with its rows' dims apart")
_SUM, _SUM_ALL = "aten.sum.dim_IntList", "aten.sum.default"


def _rank(value: Value) -> int:
    return len(from_mlir(value.type).shape)


def _rows(value: Value) -> int:
    """The extent of a value's first dim; 0 for a number."""
    shape = from_mlir(value.type).shape
    return shape[0] if shape else 0


def _finish(site: Site, call: Call, rows: Merged, results: int | None = None) -> Outcome:
    """Build the call with its rows' dims apart, and merge them behind it; `results`: how many have rows, None: all."""
    op, types = site.op, [from_mlir(result.type) for result in site.op.results]
    count = len(types) if results is None else results
    made = [type_apart(type_, rows.dims) for type_ in types[:count]] + types[count:]
    values = build(call, [to_mlir(type_) for type_ in made], op.location)
    for old, new in zip(op.results[:count], values[:count], strict=True):
        replace_taken_apart(old, new)
    merges = [reshaped(site.emitter, new, type_.shape) for new, type_ in zip(values[:count], types, strict=False)]
    site.replace(*merges, *values[count:])
    return _APPLIED


_COPIES = ("aten._to_copy.default", "aten.clone.default", "aten.alias.default", "aten.detach.default")
"""Copies: each element is that of the operand, as of a pointwise operation."""


def pointwise(site: Site) -> Outcome:
    """Operands broadcast to the result: those with rows are taken apart, those that repeat one get more dims of 1."""
    operands, rank = site.call.values(), len(site.type.shape)
    if any(from_mlir(result.type).shape != site.type.shape for result in site.op.results):
        return None
    rows = first_merged([v for v in operands if _rank(v) == rank and _rows(v) == site.type.shape[0]]) if rank else None
    if rows is None:
        return None
    return _finish(
        site, site.call.replace_values([_broadcast(site.emitter, v, rank, rows.dims) for v in operands]), rows
    )


def _broadcast(emitter: Emitter, value: Value, rank: int, dims: Dims) -> Value:
    type_ = from_mlir(value.type)
    if len(type_.shape) < rank:
        return value
    if type_.shape[0] == 1:
        return reshaped(emitter, value, ((1,) * len(dims) + type_.shape[1:]))
    return apart(emitter, value, dims)


_ROWS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("aten._log_softmax.default", "aten._softmax.default", "aten.cumsum.default"), ("self",)),
    "aten._log_softmax_backward_data.default": ("grad_output", "output"),
    "aten._softmax_backward_data.default": ("grad_output", "output"),
    **dict.fromkeys(("aten.amax.default", "aten.amin.default", "aten.logsumexp.default"), ("self",)),
    **dict.fromkeys(("aten.argmax.default", "aten.argmin.default", "aten.any.dim", "aten.all.dim"), ("self",)),
    **dict.fromkeys(("aten.max.dim", "aten.min.dim", "aten.topk.default", "aten.sort.default"), ("self",)),
    **dict.fromkeys(("aten.linalg_vector_norm.default", "aten.var.correction", "aten.mean.dim"), ("self",)),
    **dict.fromkeys(("aten.unsqueeze.default", "aten.squeeze.dim", "aten.select.int"), ("self",)),
    **dict.fromkeys(("aten.slice.Tensor", "aten.flip.default"), ("self",)),
    **dict.fromkeys(("aten.slice_backward.default", "aten.select_backward.default"), ("grad_output",)),
    "aten.gather.default": ("self", "index"),
    "aten.scatter_add.default": ("self", "index", "src"),
    "aten.scatter.src": ("self", "index", "src"),
    "aten.scatter.value": ("self", "index"),
    "aten.cat.default": ("tensors",),
    _SUM: ("self",),
}
"""Of each operation along dims, the operands that have its rows."""
_DIMS = ("dim", "dims")
_SIZES = ("input_sizes",)
"""The arguments that hold dims, and shapes of results."""


def along_dims(site: Site) -> Outcome:
    """Softmax, sums, gather, slices and the like: where none of their dims is the rows."""
    arguments = _arguments(site.call)
    operands = [v for name in _ROWS[site.call.name] for v in _listed(arguments[name])]
    rows = first_merged(operands)
    dims = _dims(arguments, _rank(operands[0]) + (site.call.name == "aten.unsqueeze.default"))
    if rows is None or not dims or 0 in dims or len({_rows(v) for v in operands}) > 1:
        return None
    shift, emitter = len(rows.dims) - 1, site.emitter
    for name in _ROWS[site.call.name]:
        given = arguments[name]
        arguments[name] = [apart(emitter, v, rows.dims) for v in _listed(given)]
        arguments[name] = arguments[name] if isinstance(given, list | tuple) else arguments[name][0]
    for name in _DIMS:
        if name in arguments:
            moved = [d + shift for d in dims]
            arguments[name] = moved if isinstance(arguments[name], list | tuple) else moved[0]
    for name in _SIZES:
        if name in arguments:
            arguments[name] = [*rows.dims, *arguments[name][1:]]
    return _finish(site, _call(site.call.name, arguments), rows)


def _dims(arguments: Mapping[str, Any], rank: int) -> list[int]:
    """The dims that an operation works along, counted from the first; none where it names none."""
    for name in _DIMS:
        if arguments.get(name) is not None:
            return [d % max(rank, 1) for d in _listed(arguments[name])]
    return []


def total(site: Site) -> Outcome:
    """A sum over dims: over rows with others it is a sum over their dims; else each row is summed alone."""
    arguments = _arguments(site.call)
    value = arguments["self"]
    rows, rank = merged(value), _rank(value)
    dims = _dims(arguments, rank) or list(range(rank))
    if rows is None or 0 not in dims:
        return along_dims(site) if rows is not None else None
    count = len(rows.dims)
    over = [*range(count), *(d + count - 1 for d in dims if d)]
    shape = tuple(n for d, n in enumerate(from_mlir(value.type).shape) if d not in dims)
    type_ = TensorType(site.type.dtype, shape)
    summed = site.emitter.op(
        _SUM, apart(site.emitter, value, rows.dims), over, False, type=type_, **site.call.kwargs
    )  # fmt: skip
    if site.type.shape != shape:
        replace_taken_apart(site.op.results[0], summed)
    site.replace(reshaped(site.emitter, summed, site.type.shape))
    return Applied("sum over rows with their dims apart")


def sum_of_all(site: Site) -> Outcome:
    """A sum over all elements: of the rows with their dims apart."""
    [value] = site.call.args
    rows = merged(value)
    if rows is None:
        return None
    site.replace(site.emitter.op(_SUM_ALL, apart(site.emitter, value, rows.dims), type=site.type, **site.call.kwargs))
    return Applied("sum over rows with their dims apart")


def expand(site: Site) -> Outcome:
    """An expand that keeps its rows."""
    value, sizes, *_ = site.call.args
    rows = merged(value)
    if rows is None or _rank(value) != len(sizes):
        return None
    return _finish(site, Call(site.call.name, (apart(site.emitter, value, rows.dims), [*rows.dims, *sizes[1:]])), rows)


_NORMS: Mapping[str, tuple[tuple[str, ...], int]] = {
    "nn.rms_norm": (("x",), 2),
    "nn.rms_norm_backward": (("grad", "x", "rstd"), 1),
    "nn.layer_norm": (("x",), 3),
    "nn.layer_norm_backward": (("grad", "x", "mean", "rstd"), 1),
}
"""Of each norm, the operands with rows, and how many results have them."""


def norm(site: Site) -> Outcome:
    """A norm of each row, and its backward."""
    names, results = _NORMS[site.call.name]
    arguments = _arguments(site.call)
    rows = first_merged([arguments[name] for name in names])
    if rows is None or len(arguments.get("shape") or (0,)) >= _rank(arguments["x"]):
        return None
    for name in names:
        arguments[name] = apart(site.emitter, arguments[name], rows.dims)
    return _finish(site, _call(site.call.name, arguments), rows, results)


def _arguments(call: Call) -> dict[str, Any]:
    """The arguments of a call by name, defaults filled in."""
    names = [argument.name for argument in definitions()[call.name].arguments]
    given = dict(zip(names, call.args, strict=False))
    return {**defaults(call.name), **given, **call.kwargs}


def _call(name: str, arguments: Mapping[str, Any]) -> Call:
    declared = definitions()[name].arguments
    args = tuple(arguments.get(a.name) for a in declared if not a.keyword)
    return Call(name, args, {a.name: arguments[a.name] for a in declared if a.keyword and a.name in arguments})


def _listed(argument: Any) -> Sequence[Any]:
    """An argument that may be a list, as one."""
    return argument if isinstance(argument, list | tuple) else [argument]


def patterns() -> dict[str, Pattern]:
    """The pattern of each operation that takes rows alone, or sums them."""
    return {
        **{name: pointwise for name in definitions() if is_pointwise(name)},
        **dict.fromkeys(_COPIES, pointwise),
        **dict.fromkeys(_ROWS, along_dims),
        **dict.fromkeys(_NORMS, norm),
        _SUM: total,
        _SUM_ALL: sum_of_all,
        "aten.expand.default": expand,
        **dict.fromkeys(("aten.embedding.default", "aten.index.Tensor"), look_up),
        "aten.embedding_dense_backward.default": look_up_backward,
        "aten.index_put.default": put,
    }
