"""Sums along a dim of which ranks have parts: each adds up its own, and the totals of the ranks before it.

Before (global shapes)                          After (local shapes, cp=2)
  %y = aten.cumsum %x, 2                          %0 = aten.cumsum %x, 2
    both: {cp = "shard(2)"}
                                                  %1 = comm.all_gather (the last of %0) over ["cp"]
                                                  %2 = aten.where %ranks < %own, %1, 0
                                                  %y = aten.add %0, (aten.sum %2, 2)

In linear attention the total is the state of a rank's tokens, whose size no sequence changes. A sum from the end, in
the backward, is a flip, a sum and a flip: each rank flips its part, and chunks then lie in reverse. So it is one gather
each way.

Source: LASP-2 (arXiv:2502.07563), sections 3.1 and 3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from ...ir.bindings import Value
from ...ir.collectives import ALL_GATHER
from ...ir.operations import Call
from ...ir.types import TensorType, from_mlir
from .emitter import LocalEmitter, Shards, Types


def _cumsum(emitter: LocalEmitter, call: Call, shards: Shards, types: Types) -> list[Value | None]:
    """The sums of the rank's own part, and the totals of the ranks whose parts come before it."""
    [type_], d, ranks = types, shards.dim, emitter.size(shards.axes)
    assert type_ is not None
    own = emitter.op(call.name, *call.args, type=type_, **call.kwargs)
    extent, bare = type_.shape[d], TensorType(type_.dtype, type_.shape)
    last = emitter.op("aten.slice.Tensor", own, d, extent - 1, extent, type=_with(bare, d, 1))
    states = emitter.op(ALL_GATHER, last, list(shards.axes), d, type=_with(bare, d, ranks))
    numbers = TensorType(torch.int64, (ranks,))
    counted = emitter.op("aten.arange.default", ranks, type=numbers, dtype=torch.int64)
    coordinate = emitter.op("comm.offset", list(shards.axes), 1, type=TensorType(torch.int64, ()))
    order = "aten.gt.Tensor" if min(shards.blocks, default=0) < 0 else "aten.lt.Tensor"
    flags = TensorType(torch.bool, (ranks, *[1] * (len(type_.shape) - 1 - d)))
    comes_before = emitter.op(order, counted, coordinate, type=TensorType(torch.bool, (ranks,)))
    comes_before = emitter.op("aten.reshape.default", comes_before, list(flags.shape), type=flags)
    nothing = 0.0 if type_.dtype.is_floating_point else 0
    earlier = emitter.op("aten.where.ScalarOther", comes_before, states, nothing, type=from_mlir(states.type))
    before = emitter.op("aten.sum.dim_IntList", earlier, [d], True, type=_with(bare, d, 1))
    return [emitter.op("aten.add.Tensor", own, before, type=type_)]


def _flip(emitter: LocalEmitter, call: Call, shards: Shards, types: Types) -> list[Value | None]:
    """The rank's own part, flipped."""
    [type_] = types
    assert type_ is not None
    return [emitter.op(call.name, *call.args, type=type_, **call.kwargs)]


def _with(type_: TensorType, d: int, extent: int) -> TensorType:
    return replace(type_, shape=(*type_.shape[:d], extent, *type_.shape[d + 1 :]))


LOWERINGS: dict[str, Callable[[LocalEmitter, Call, Shards, Types], list[Value | None]]] = {
    "aten.cumsum.default": _cumsum,
    "aten.flip.default": _flip,
}
"""What a rank computes in place of a sum along tokens, and of a flip beside it."""
