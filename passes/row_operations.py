"""Operations that take each row alone: each row of a result is a function of the same row of the operands.

The rows of a tensor are the indices of its leading dims. Such operations compute the same rows in any order, and on
any choice of them, which passes use that move the rows of experts.
"""

from __future__ import annotations

from typing import Any

from ..ir.bindings import Value, mlir
from ..ir.operations import Call, build, flatten, regroup
from ..ir.types import TensorType, from_mlir, is_tensor, to_mlir
from ..ops.overloads import is_pointwise, overload
from .graph import Node
from .sharding.rules.call import bind

Shape = tuple[int, ...]

_DIMS = (
    "aten.split.Tensor",
    "aten.split_with_sizes.default",
    "aten.cat.default",
    "aten.slice.Tensor",
    "aten.slice_backward.default",
    "aten.sum.dim_IntList",
    "aten.unsqueeze.default",
    "aten.squeeze.dim",
    "aten._softmax.default",
)
"""Operations with an argument "dim", which take each row alone where it is none of the rows' dims."""
_RESHAPES = ("aten.reshape.default", "aten.view.default")
_SIZES = {
    "aten.reshape.default": "shape",
    "aten.view.default": "size",
    "aten.slice_backward.default": "input_sizes",
}
"""The constant of each that is the shape of its result."""


def has_rows(value: Value, rows: Shape) -> bool:
    """Whether the leading dims of a value are `rows`."""
    return is_tensor(value.type) and from_mlir(value.type).shape[: len(rows)] == rows


def takes_rows_alone(node: Node, rows: Shape) -> bool:
    """Whether an operation takes the rows of its operands alone; an operand without rows must not mix with them."""
    if node.call is None or not node.values or not all(has_rows(v, rows) for v in node.values):
        return False
    all_have_rows = all(has_rows(v, rows) for v in node.operands)
    if node.name in _DIMS:
        return all_have_rows and all(d >= len(rows) for d in _dims(node))
    if node.name in _RESHAPES:
        return all_have_rows
    if node.name == "aten._to_copy.default":
        return True
    rank = max(len(from_mlir(v.type).shape) for v in node.values)
    return is_pointwise(node.name) and not any(_mixes(from_mlir(v.type).shape, rows, rank) for v in node.operands)


def _mixes(shape: Shape, rows: Shape, rank: int) -> bool:
    """Whether an operand has other rows than the result of rank `rank`; one that broadcasts over rows has none."""
    own = shape[: len(shape) - rank + len(rows)] if len(shape) > rank - len(rows) else ()
    return own != rows and any(extent != 1 for extent in own)


def on_rows(node: Node, operands: list[Value], rows: Shape, count: int) -> list[Value]:
    """The operation on other rows: `count` of them, in one leading dim, in place of `rows`."""
    assert node.call is not None
    call, shift = node.call.replace_values(operands), len(rows) - 1
    types = [TensorType(t.dtype, (count, *t.shape[len(rows) :])) for t in (from_mlir(v.type) for v in node.values)]
    if node.name in _DIMS and shift:
        dims = [d - shift for d in _dims(node)]
        call = _with(call, "dim", dims if isinstance(_bound(node)["dim"], (list, tuple)) else dims[0])
    if node.name in _SIZES:
        call = _with(call, _SIZES[node.name], list(types[0].shape))
    return flatten(build(call, regroup(node.results, [to_mlir(t) for t in types]), node.op.location))


def _dims(node: Node) -> list[int]:
    """The dims that an operation works along, counted from the start."""
    dims = _bound(node).get("dim")
    rank = len(from_mlir(node.operands[0].type).shape) + (node.name == "aten.unsqueeze.default")
    return [d % rank for d in ([dims] if isinstance(dims, int) else dims or range(rank))]


def constants(call: Call) -> dict[str, Any]:
    """The constant operands of a call by name, defaults filled in; None for tensors. Empty for an unknown op."""
    bound = bind(call.name, tuple(None if isinstance(a, mlir.Value) else a for a in call.args), call.kwargs, ())
    return {} if bound is None else dict(bound.operands)


def is_known(name: str) -> bool:
    """Whether torch has an op of this name."""
    return overload(name) is not None


def _bound(node: Node) -> dict[str, Any]:
    assert node.call is not None
    return constants(node.call)


def _with(call: Call, name: str, value: object) -> Call:
    """The call with one of its constants replaced."""
    position = list(constants(call)).index(name)
    if position >= len(call.args):
        return Call(call.name, call.args, {**call.kwargs, name: value})
    return Call(call.name, (*call.args[:position], value, *call.args[position + 1 :]), call.kwargs)
