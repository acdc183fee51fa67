"""The floating-point operations and the memory traffic of one op on one rank.

A time is in bytes moved: the bytes that the op reads and writes, or its floating-point operations at `FLOPS_PER_BYTE`,
whichever takes longer (a roofline). It is good for ratios, such as to balance stages, and predicts nothing.

Source: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model" (CACM 2009);
floating-point operations by torch's own formulas (`torch.utils.flop_counter`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..ir.bindings import Value, mlir
from ..ir.operations import Call
from ..ir.types import element_bytes, from_mlir, is_tensor
from .roofline import FLOPS_PER_BYTE, flop_formulas


def bytes_of(value: Value) -> int:
    """The memory of a value on one rank (bytes); 0 for what is no tensor."""
    return element_bytes(from_mlir(value.type)) if is_tensor(value.type) else 0


def traffic(values: Sequence[Value]) -> int:
    """The bytes that an op moves which reads or writes each of these values once."""
    return sum(map(bytes_of, values))


def op_time(call: Call, operands: Sequence[Value], results: Sequence[Value]) -> float:
    """The time of one op, in bytes moved."""
    return max(float(traffic((*operands, *results))), flops(call, results) / FLOPS_PER_BYTE)


def flops(call: Call, results: Sequence[Value]) -> float:
    """The floating-point operations of one op; 0 where torch has no formula for it."""
    formula = flop_formulas().get(call.name)
    if formula is None:
        return 0.0
    args = tree_map(_meta, list(call.args), is_leaf=_is_value)
    kwargs = {key: tree_map(_meta, value, is_leaf=_is_value) for key, value in call.kwargs.items()}
    made = [_meta(v) for v in results]
    return float(formula(*args, **kwargs, out_val=made[0] if len(made) == 1 else tuple(made)))


def _is_value(argument: Any) -> bool:
    return isinstance(argument, mlir.Value)


def _meta(argument: Any) -> Any:
    """A tensor without memory in place of a value."""
    if not _is_value(argument) or not is_tensor(argument.type):
        return argument
    type_ = from_mlir(argument.type)
    made: Tensor = torch.empty(type_.shape, dtype=type_.dtype, device="meta")
    return made
