"""Attention on a ring: keys and values go from rank to rank, and a rank's queries meet one block of them at a time.

Before (global shapes)                          After (local shapes, cp=2)
  %o, %l = nn.attention %q, %k, %v                %o0, %l0 = nn.attention %q, %k, %v               the rank's own block
    all of q, k, v: {cp = "shard(2)"}             %k1 = comm.permute %k over ["cp"] by 1           so %v1
                                                  %o1, %l1 = nn.attention %q, %k1, %v1
                                                  %t, %w, %h = nn.merge_attention %o0, 1, %l0, %o1, %l1
                                                  %o, %l = %t / %w, %h + log %w

Where attention is causal, a rank's own block is causal, and another one is seen whole or not at all: a mask of one
number says which. Where there are offsets or other extents, each block counts from its own. With tokens cut zigzag, a
step is two half blocks (`zigzag_attention.py`).

A block that a mask hides from all ranks is no step, and is hopped over: where a window ends, the ring does.

In the backward keys and values go round again, with the sums of their gradients behind them: those of a block start at
its next rank, and its own rank adds its part at the end. So n ranks pass everything n - 1 times. The permutes of keys
are numbered there (`use`): else `cse` would keep all blocks from the forward.

All ranks run the same ops on equal shapes, so where causal tokens are contiguous a rank computes scores of blocks that
its queries do not see.

Source: Ring Attention (arXiv:2310.01889), and Sequence Parallelism (arXiv:2105.13120) before it; parts of a softmax are
merged as in FlashAttention (arXiv:2205.14135), section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable

from ...ir.bindings import Value
from ...ir.operations import Call
from ...ir.types import TensorType
from . import zigzag_attention
from .emitter import LocalEmitter, Shards, Types
from .ring import Band, Ring, first_part, merged, of_parts


def _forward(emitter: LocalEmitter, call: Call, shards: Shards, types: Types, band: Band) -> list[Value | None]:
    """The parts of all blocks, merged as they come."""
    ring, [out, logsumexp] = Ring(emitter, shards, call, band), present(types)
    parts = first_part(emitter, *ring.attend(0, ring.key, ring.value, [out, logsumexp]))
    key, value = ring.key, ring.value
    for step, hops in ring.steps():
        key, value = ring.passed(key, hops=hops), ring.passed(value, hops=hops)
        if ring.is_balanced:
            parts = zigzag_attention.with_step(ring, parts, step, key, value)
        else:
            parts = merged(emitter, parts, ring.attend(step, key, value, [out, logsumexp]))
    return [*of_parts(emitter, parts, out, logsumexp)]


def _backward(emitter: LocalEmitter, call: Call, shards: Shards, types: Types, band: Band) -> list[Value | None]:
    """Gradients of queries add up here; those of keys and values follow their block, and end where it is at home."""
    ring, wanted = Ring(emitter, shards, call, band), present(types)
    of_query, *of_block = wanted
    key, value, sums = ring.key, ring.value, list[Value]()

    def added(one: Value, other: Value, type_: TensorType) -> Value:
        return emitter.op("aten.add.Tensor", one, other, type=type_)

    grad_query, *own = ring.attend(0, key, value, wanted)
    step = 0
    for step, hops in ring.steps():
        key, value = ring.passed(key, 1, hops), ring.passed(value, 1, hops)
        if ring.is_balanced:
            more, *part = zigzag_attention.gradients(ring, step, key, value)
        else:
            more, *part = ring.attend(step, key, value, wanted)
        grad_query = added(grad_query, more, of_query)
        passed = [ring.passed(each, hops=hops) for each in sums]
        sums = [added(*pair) for pair in zip(passed, part, of_block, strict=True)] if sums else part
    home = [ring.passed(each, hops=ring.size - step) for each in sums]
    return [grad_query, *(map(added, home, own, of_block) if home else own)]


def present(types: Types) -> list[TensorType]:
    """The types of an attention's results."""
    assert None not in types, "attention computes all its results"
    return [type_ for type_ in types if type_ is not None]


LOWERINGS: dict[str, Callable[[LocalEmitter, Call, Shards, Types, Band], list[Value | None]]] = {
    "nn.attention": _forward,
    "nn.attention_backward": _backward,
}
"""What a rank computes in place of attention whose queries and keys are both sharded by tokens."""
