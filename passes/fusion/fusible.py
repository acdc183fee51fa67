"""Which operations a fused region may hold, by what they cost in a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import prod

from ...ir.bindings import Value
from ...ir.lanes import lane_of
from ...ir.types import from_mlir, is_tensor
from ..graph import Node


class Role(StrEnum):
    """What an operation is in a kernel."""

    FREE = "free"
    """A view, or a constant: only indices change, so that a copy of it in the region costs nothing."""
    POINTWISE = "pointwise"
    JOIN = "join"
    """It writes elements that come from one of several places."""
    REDUCTION = "reduction"
    """It reduces the last dims, alone or beside elementwise work, as softmax does; or the first ones alone."""


_FREE = (
    "view reshape _unsafe_view unsqueeze squeeze expand permute transpose t slice select alias detach "
    "full full_like zeros zeros_like ones ones_like scalar_tensor arange"
)
_POINTWISE = (
    "add sub rsub mul div neg abs reciprocal square pow exp log sqrt rsqrt sin cos erf tanh sigmoid silu relu gelu "
    "gelu_backward silu_backward sigmoid_backward tanh_backward threshold_backward maximum minimum clamp clamp_min "
    "clamp_max eq ne lt le gt ge logical_and logical_or logical_xor logical_not bitwise_and bitwise_or bitwise_xor "
    "bitwise_not where masked_fill _to_copy clone"
)
_JOINS = "cat constant_pad_nd flip gather embedding scatter_add scatter"
_REDUCTIONS = (
    "sum mean amax amin _softmax _log_softmax _softmax_backward_data _log_softmax_backward_data native_layer_norm "
    "native_layer_norm_backward"
)

ROLES: dict[str, Role] = {
    name: role
    for role, names in (
        (Role.FREE, _FREE), (Role.POINTWISE, _POINTWISE), (Role.JOIN, _JOINS), (Role.REDUCTION, _REDUCTIONS),
    )
    for name in names.split()
}  # fmt: skip
"""By torch's name without the overload."""

_OVERLOADS_NOT_TAKEN = frozenset({"aten.div.Tensor_mode", "aten.div.Scalar_mode", "aten.pow.Tensor_Tensor"})
_EXPONENTS = frozenset({1.0, 2.0, 3.0, 4.0, 0.5, -0.5, -1.0, -2.0})
"""The powers that take no logarithm."""
_MOST_IN_ONE_ROW = 1 << 16
"""A single row that is longer would be left to one program of the whole GPU (elements)."""
_LEAST_ROWS_ALONG_FIRST = 32
"""Fewer sums over the first dims would be left to one program of the whole GPU (elements of the result)."""
_ALONG_FIRST = frozenset(["sum", "mean", "amax", "amin"])
_MOVES_ELEMENTS = frozenset(
    ["permute", "transpose", "t", "slice", "select", "flip", "cat", "constant_pad_nd", "embedding"]
)


@dataclass(frozen=True)
class Shape:
    """How an operation's elements lie: of a reduction rows and columns, of others the elements of its result."""

    elements: int
    columns: int | None = None
    along_first: bool = False
    """Whether a row is what lies along the first dims: its elements lie apart."""


def role_of(node: Node) -> Role | None:
    """What an operation is in a kernel; None for one that no region holds."""
    if node.call is None or lane_of(node.op) or not node.values or not node.name.startswith("aten."):
        return None
    role = ROLES.get(node.name.split(".")[1])
    if (
        role is None
        or node.name in _OVERLOADS_NOT_TAKEN
        or not all(_is_taken(v) for v in (*node.operands, *node.values))
    ):
        return None
    if role is Role.REDUCTION and shape_of(node, role) is None:
        return None
    return role if _arguments_are_taken(node) else None


def moves_elements(node: Node) -> bool:
    """Whether the operation gives its operand's elements another order."""
    return node.name.split(".")[1] in _MOVES_ELEMENTS


def shape_of(node: Node, role: Role) -> Shape | None:
    """The elements of an operation; None for a reduction along neither the last nor the first dims."""
    if role is not Role.REDUCTION:
        return Shape(max(elements(value) for value in node.values))
    assert node.call is not None
    shape = from_mlir(node.operands[0].type).shape
    dims = _reduced_dims(node, len(shape))
    if dims is None or prod(shape) == 0:
        return None
    columns = prod(shape[dim] for dim in dims)
    if dims != tuple(range(len(shape) - len(dims), len(shape))):
        along_first = dims == tuple(range(len(dims))) and node.name.split(".")[1] in _ALONG_FIRST
        many = prod(shape) // columns >= _LEAST_ROWS_ALONG_FIRST
        return Shape(prod(shape), columns, along_first=True) if along_first and many else None
    if prod(shape) == columns > _MOST_IN_ONE_ROW:
        return None
    return Shape(prod(shape), columns)


def elements(value: Value) -> int:
    """The number of elements of a value on one rank."""
    return prod(from_mlir(value.type).shape)


def _reduced_dims(node: Node, rank: int) -> tuple[int, ...] | None:
    """The dims that a reduction runs along, counted from the front; None where it sums over rows too."""
    assert node.call is not None
    name, args = node.name.split(".")[1], node.call.args
    if name == "native_layer_norm":
        return tuple(range(rank - len(args[1]), rank))
    if name == "native_layer_norm_backward":
        return tuple(range(rank - len(args[2]), rank)) if list(args[7][1:]) == [False, False] else None
    place = 2 if name.endswith("_data") else 1
    stated = args[place] if len(args) > place else node.call.kwargs.get("dim")
    if stated is None or stated == [] or stated == ():
        return tuple(range(rank))
    return tuple(sorted(dim % max(rank, 1) for dim in (stated if isinstance(stated, list | tuple) else [stated])))


def _is_taken(value: Value) -> bool:
    if not is_tensor(value.type):
        return False
    dtype = from_mlir(value.type).dtype
    return not dtype.is_complex and (not dtype.is_floating_point or dtype.itemsize > 1)


def _arguments_are_taken(node: Node) -> bool:
    assert node.call is not None
    name, args = node.name.split(".")[1], node.call.args
    if name == "pow":
        return isinstance(args[1], int | float) and float(args[1]) in _EXPONENTS
    if name in ("scatter", "scatter_add"):
        return bool(from_mlir(args[2].type).shape[args[1]] == 1)
    if name in ("where", "masked_fill"):
        return len(args) == 3
    if name in ("add", "sub", "mul", "neg", "abs"):
        return bool(from_mlir(node.values[0].type).dtype.itemsize > 1)
    return True
