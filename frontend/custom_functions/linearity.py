"""Whether a custom backward is linear in its tangents, as every derivative is.

A pipeline computes gradients for one tangent and multiplies them by that of the caller, which is right only for such a
backward. An op that is not known here counts as not linear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import torch
from torch import fx

from .custom_function import Backward


class _Kind(Enum):
    """How a value depends on the tangents."""

    ZERO = "zero, whatever they are"
    FIXED = "does not depend on them"
    LINEAR = "linear in them"
    OTHER = "depends on them in another way"


_FIXED = frozenset(
    {"zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_empty", "new_full", "sym_size"}
)
"""Ops that read no more than the shape of their operand."""
_ZEROS = frozenset({"zeros_like", "new_zeros", "zeros"})
_OF_FIRST = frozenset(
    {
        "view", "reshape", "_unsafe_view", "expand", "expand_as", "view_as", "reshape_as", "permute", "transpose", "t",
        "mT", "unsqueeze", "squeeze", "flatten", "unflatten", "slice", "select", "narrow", "index", "gather",
        "index_select", "clone", "contiguous", "to", "_to_copy", "type_as", "detach", "alias", "neg", "sum", "mean",
        "cumsum", "sum_to_size", "div", "true_divide", "divide", "tril", "triu", "flip", "roll", "repeat", "split",
        "split_with_sizes", "chunk", "unbind", "movedim", "swapaxes", "real", "view_as_real", "view_as_complex",
        "getitem", "take_along_dim", "lift_fresh_copy", "broadcast_to", "negative", "float", "double", "half",
    }
)  # fmt: skip
"""Ops that are linear in their first operand, if no other one depends on the tangents."""
_PRODUCTS = frozenset(
    {"mul", "multiply", "mm", "bmm", "matmul", "mv", "dot", "outer", "einsum", "convolution", "conv2d", "conv1d"}
)
"""Ops that are linear in each of their operands."""
_SUMS = frozenset({"add", "sub", "subtract", "rsub", "cat", "stack", "concat", "copy", "masked_fill", "where"})
"""Ops that are linear in their operands together, but for a condition or a mask."""
_LISTED = frozenset({"cat", "stack", "concat"})
"""Those of them that take a list; what follows is a dim."""
_CONDITION = {"where": 0, "masked_fill": 1}
"""The position of a condition, which may not depend on the tangents."""


def is_linear(backward: Backward) -> bool:
    """Whether each gradient is zero, or linear in the tangents that are present."""
    graph = backward.graph.graph
    placeholders = graph.find_nodes(op="placeholder")
    given = sum(backward.present)
    kinds = dict.fromkeys(placeholders, _Kind.FIXED)
    kinds.update(dict.fromkeys(placeholders[len(placeholders) - given :], _Kind.LINEAR))
    for node in graph.nodes:
        if node.op == "call_function":
            kinds[node] = _kind(node, kinds.__getitem__)
            if _writes(node) and not _keeps_linear(node, kinds):
                return False
    returned: Any = graph.output_node().args[0]
    return all(node is None or kinds[node] in (_Kind.ZERO, _Kind.LINEAR) for node in returned)


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _keeps_linear(node: fx.Node, kinds: Mapping[fx.Node, _Kind]) -> bool:
    """Whether an in-place op leaves all that shares the memory linear, or as fixed as it was."""
    operands = {kinds[operand] for operand in node.all_input_nodes}
    return kinds[node] in (_Kind.ZERO, _Kind.LINEAR) or operands == {_Kind.FIXED}


def _kind(node: fx.Node, kind_of: Callable[[fx.Node], _Kind]) -> _Kind:
    name = _name(node)
    operands = [(kind_of(operand), operand) for operand in node.all_input_nodes]
    kinds = {kind for kind, _ in operands}
    if name in _ZEROS:
        return _Kind.ZERO
    if name in _FIXED or not kinds & {_Kind.LINEAR, _Kind.OTHER}:
        return _Kind.FIXED if name not in _OF_FIRST or kinds != {_Kind.ZERO} else _Kind.ZERO
    if _Kind.OTHER in kinds:
        return _Kind.OTHER
    linear = [operand for kind, operand in operands if kind is _Kind.LINEAR]
    if name in _OF_FIRST:
        return _Kind.LINEAR if linear == [_first(node)] else _Kind.OTHER
    if name in _PRODUCTS:
        once = len(linear) == 1 and _times_used(node, linear[0]) == 1
        return _Kind.LINEAR if once else _Kind.OTHER
    return _Kind.LINEAR if name in _SUMS and _is_linear_sum(node, name, kind_of) else _Kind.OTHER


def _is_linear_sum(node: fx.Node, name: str, kind_of: Callable[[fx.Node], _Kind]) -> bool:
    condition = node.args[_CONDITION[name]] if name in _CONDITION else None
    if isinstance(condition, fx.Node) and kind_of(condition) not in (_Kind.FIXED, _Kind.ZERO):
        return False
    listed = node.args[:1] if name in _LISTED else node.args
    summands = [argument for argument in listed if argument is not condition or condition is None]
    return all(_is_linear_summand(summand, kind_of) for summand in _flat(summands))


def _is_linear_summand(summand: Any, kind_of: Callable[[fx.Node], _Kind]) -> bool:
    """Whether a summand is linear or zero: a number is so only if it is 0."""
    if isinstance(summand, fx.Node):
        return kind_of(summand) in (_Kind.LINEAR, _Kind.ZERO)
    return summand is None or isinstance(summand, bool) or summand == 0


def _flat(arguments: Any) -> list[Any]:
    if isinstance(arguments, (list, tuple)):
        return [item for argument in arguments for item in _flat(argument)]
    return [arguments]


def _first(node: fx.Node) -> Any:
    first = node.args[0] if node.args else None
    return first[0] if isinstance(first, (list, tuple)) and first else first


def _times_used(node: fx.Node, operand: fx.Node) -> int:
    return sum(argument is operand for argument in _flat([*node.args, *node.kwargs.values()]))


def _name(node: fx.Node) -> str:
    """The op's name without overload, and without the underscore of an in-place form."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.partition("::")[2].removesuffix("_")
    return getattr(target, "__name__", "")
