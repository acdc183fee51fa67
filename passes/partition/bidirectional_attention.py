"""Attention on a ring around which queries go: each meets the keys of a rank there, and what came of it goes back.

Before (global shapes)                          After (local shapes, cp=4; of step 1)
  %o, %l = nn.attention %q, %k, %v                %q1 = comm.permute %q over ["cp"] by 3      to the rank before
    all of q, k, v: {cp = "shard(2)"}             %o1, %l1 = nn.attention %q1, %k, %v
                                                  %o2 = comm.permute %o1 over ["cp"] by 1     back; so %l1
                                                  %t, %w, %h = nn.merge_attention ..

Queries go one way and results the other, so that both directions of links are used. Keys and values stay. At step s the
queries are those of the rank s places behind: the steps are those of `ring_attention.py`, so a window ends them early.
A mask's part for the queries of another rank comes from there. With tokens cut zigzag a step is two half blocks
(`zigzag_attention.py`).

In the backward the queries go again, with the output, its gradient and the logsumexp; gradients of queries come back,
those of keys and values add up where they are. What goes round is numbered (`use`), as in `ring_attention.py`.

Source: TokenRing (arXiv:2412.20501), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...ir.bindings import Value
from ...ir.operations import Call
from ...ir.types import TensorType, from_mlir
from . import zigzag_attention
from .emitter import LocalEmitter, Shards, Types
from .ring import Band, Ring, columns_at, first_part, merged, of_parts
from .ring_attention import present


def _forward(emitter: LocalEmitter, call: Call, shards: Shards, types: Types, band: Band) -> list[Value | None]:
    """The parts of all blocks of keys, merged as they come back."""
    ring, [out, logsumexp] = Ring(emitter, shards, call, band), present(types)
    parts = first_part(emitter, *ring.attend(0, ring.key, ring.value, [out, logsumexp]))
    query = ring.query
    for step, hops in ring.steps():
        query = ring.passed(query, hops=ring.size - hops)
        args = [query, *ring.args[1:]]
        made = _part(ring, step, args, [out, logsumexp])
        parts = merged(emitter, parts, [ring.passed(each, hops=step) for each in made])
    return [*of_parts(emitter, parts, out, logsumexp)]


def _backward(emitter: LocalEmitter, call: Call, shards: Shards, types: Types, band: Band) -> list[Value | None]:
    """Gradients of queries come home from each rank; those of keys and values add up here."""
    ring, wanted = Ring(emitter, shards, call, band), present(types)
    sums = ring.attend(0, ring.key, ring.value, wanted)
    grad, query, _, _, out, logsumexp = ring.args[:6]
    for step, hops in ring.steps():
        grad, query, out, logsumexp = (ring.passed(each, 1, ring.size - hops) for each in (grad, query, out, logsumexp))
        args = [grad, query, ring.key, ring.value, out, logsumexp, *ring.args[6:]]
        of_query, *of_block = _part(ring, step, args, wanted)
        part = [ring.passed(of_query, hops=step), *of_block]
        sums = [
            emitter.op("aten.add.Tensor", *pair, type=type_) for *pair, type_ in zip(sums, part, wanted, strict=True)
        ]
    return [*sums]


def _part(ring: Ring, step: int, args: Sequence[Value | None], types: Sequence[TensorType]) -> list[Value]:
    """The op on the queries that have come at a step, and the own keys."""
    behind, mask = ring.block(-step), _mask(ring, step)
    if ring.is_balanced:
        return zigzag_attention.of_blocks(ring, args, behind, ring.coordinate, mask, types)
    return ring.of_blocks(args, behind, ring.coordinate, mask, types)


def _mask(ring: Ring, step: int) -> Value | None:
    """The mask of the queries that have come at a step, and the own keys."""
    mask = ring.mask
    if mask is None:
        return None
    rows = from_mlir(mask.type).shape[-2:-1]
    if rows in ((), (1,)):
        return columns_at(ring.emitter, mask, ring.positions(ring.coordinate, ring.keys))
    of_reader = columns_at(ring.emitter, mask, ring.positions(ring.block(step), ring.keys))
    return ring.passed(of_reader, hops=ring.size - step)


LOWERINGS: dict[str, Callable[[LocalEmitter, Call, Shards, Types, Band], list[Value | None]]] = {
    "nn.attention": _forward,
    "nn.attention_backward": _backward,
}
"""What a rank computes in place of attention whose queries and keys are both sharded by tokens."""
