"""Rules of ops that make a tensor without reading values: constants, *_like and new_* forms, metadata checks."""

from __future__ import annotations

from ....ir.placement import AxisPlacement, Shard
from .builders import P, R, Rule, everywhere, row
from .call import Call
from .strategy import Row


def constant(call: Call) -> list[Row]:
    """full, zeros, ones: every element is the same, so that any part can be made where it is wanted."""
    return [row([d], []) for d in range(len(call.out().shape))]


def replicated(call: Call) -> list[Row]:
    """arange, scalar_tensor: made whole on every rank."""
    return []


def like(call: Call) -> list[Row]:
    """full_like, zeros_like: shaped as the operand, whose values (partial or not) are not read."""
    rows = [everywhere(call, d, d) for d in range(len(call.inputs[0].shape))]
    return [*rows, everywhere(call, R, P)]


def new(call: Call) -> list[Row]:
    """new_full, new_zeros: only the operand's dtype is read, so that it may lie as it likes."""
    given: list[AxisPlacement] = [R, P, *(Shard(d) for d in range(len(call.inputs[0].shape)))]
    wanted: list[AxisPlacement] = [R, *(Shard(d) for d in range(len(call.out().shape)))]
    return [everywhere(call, output, placement) for output in wanted for placement in given]


def metadata_check(call: Call) -> list[Row]:
    """_assert_tensor_metadata: a shard passes as well where sizes and strides are not looked at."""
    if call.operands["size"] is not None or call.operands["stride"] is not None:
        return []
    return [row([], [P]), *(row([], [d]) for d in range(len(call.inputs[0].shape)))]


def random(call: Call) -> list[Row]:
    """Cut as the tensor that it is used with, whose values are not read; whole where there is none or a partial one."""
    shards = [Shard(d) for d in range(len(call.out().shape))]
    if call.maybe("like") is None:
        return [row([d], [R, R]) for d in shards]
    follow: list[tuple[AxisPlacement, AxisPlacement]] = [*((d, d) for d in shards), (R, P)]
    cut = [(wanted, given) for wanted in shards for given in (R, P)]
    return [row([wanted], [R, R, given]) for wanted, given in (*follow, *cut)]


TABLE: dict[str, Rule] = {
    **dict.fromkeys(("aten.full.default", "aten.zeros.default", "aten.ones.default"), constant),
    "aten.empty.memory_format": constant,
    **dict.fromkeys(("aten.arange.default", "aten.arange.start", "aten.arange.start_step"), replicated),
    **dict.fromkeys(("aten.scalar_tensor.default", "aten.eye.default", "aten.eye.m"), replicated),
    **dict.fromkeys(("aten.linspace.default", "aten.tril_indices.default", "aten.triu_indices.default"), replicated),
    **dict.fromkeys(("aten.full_like.default", "aten.zeros_like.default", "aten.ones_like.default"), like),
    "aten.empty_like.default": like,
    **dict.fromkeys(("aten.new_full.default", "aten.new_zeros.default", "aten.new_ones.default"), new),
    **dict.fromkeys(("aten.new_empty.default",), new),
    "nn.random": random,
    "aten._assert_tensor_metadata.default": metadata_check,
}
