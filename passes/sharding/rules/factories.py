"""Rules of ops that make a tensor without reading values: constants, *_like and new_* forms, metadata checks."""

from __future__ import annotations

from ....ir.placement import AxisPlacement, Shard
from .builders import P, R, Rule, strategy, uniform
from .call import Call
from .strategy import Strategy


def constant(call: Call) -> list[Strategy]:
    """full, zeros, ones: every element is the same, so that each rank creates its own part."""
    return [strategy([d], []) for d in range(len(call.out().shape))]


def replicated(call: Call) -> list[Strategy]:
    """arange, scalar_tensor: replicated."""
    return []


def like(call: Call) -> list[Strategy]:
    """full_like, zeros_like: sharded as the operand, whose values (partial or not) are not read."""
    strategies = [uniform(call, d, d) for d in range(len(call.inputs[0].shape))]
    return [*strategies, uniform(call, R, P)]


def new(call: Call) -> list[Strategy]:
    """new_full, new_zeros: only the operand's dtype is read, so that it may have any placement."""
    inputs: list[AxisPlacement] = [R, P, *(Shard(d) for d in range(len(call.inputs[0].shape)))]
    outputs: list[AxisPlacement] = [R, *(Shard(d) for d in range(len(call.out().shape)))]
    return [uniform(call, output, placement) for output in outputs for placement in inputs]


def metadata_check(call: Call) -> list[Strategy]:
    """_assert_tensor_metadata: a shard passes too where sizes and strides are not checked."""
    if call.operands["size"] is not None or call.operands["stride"] is not None:
        return []
    return [strategy([], [P]), *(strategy([], [d]) for d in range(len(call.inputs[0].shape)))]


def random(call: Call) -> list[Strategy]:
    """nn.random: sharded as `like`, whose values are not read; replicated where `like` is partial or absent."""
    shards = [Shard(d) for d in range(len(call.out().shape))]
    if call.maybe("like") is None:
        return [strategy([d], [R, R]) for d in shards]
    same_as_like: list[tuple[AxisPlacement, AxisPlacement]] = [*((d, d) for d in shards), (R, P)]
    sharded = [(output, like) for output in shards for like in (R, P)]
    return [strategy([output], [R, R, like]) for output, like in (*same_as_like, *sharded)]


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
