"""Causal attention over sharded queries: a rank's queries count from its offset, the keys are whole.

Source: the all-gather of keys and values in the Llama 3 report (arXiv:2407.21783), section 3.3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...ir.bindings import Value
from ...ir.operations import Call, build
from ...ir.types import TensorType, to_mlir
from ..rewriting import Emitter
from .emitter import LocalEmitter, Shards, Types

OFFSET_ARGUMENTS = {"nn.attention": 8, "nn.attention_backward": 11}
"""How many arguments each op has; the last two are the offsets."""


def with_offset(call: Call, first: Value, emitter: Emitter) -> Call:
    """The call with the position of the first of some of its queries, a 0-d integer, added to `q_offset`."""
    arguments: list[Any] = [*call.args, *[None] * (OFFSET_ARGUMENTS[call.name] - len(call.args))]
    *args, q_offset, k_offset = arguments
    moved = first if q_offset is None else emitter.like("aten.add.Tensor", first, q_offset)
    return Call(call.name, (*args, moved, k_offset), call.kwargs)


def _of_rank(emitter: LocalEmitter, call: Call, shards: Shards, types: Types) -> list[Value | None]:
    own = emitter.op("comm.offset", list(shards.axes), shards.chunk, type=TensorType(torch.int64, ()))
    local = with_offset(call, own, emitter)
    return [*build(local, [to_mlir(type_) for type_ in types if type_ is not None], emitter.loc)]


LOWERINGS: dict[str, Callable[[LocalEmitter, Call, Shards, Types], list[Value | None]]] = dict.fromkeys(
    OFFSET_ARGUMENTS, _of_rank
)
"""What a rank computes in place of attention over sharded queries."""
