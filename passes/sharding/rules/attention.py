"""Rules of attention, torch's own and the nn dialect's: by batch, by heads, by queries."""

from __future__ import annotations

from dataclasses import replace

from .builders import P, Rule, strategy
from .call import Call
from .strategy import Lowering, Strategy, Tie


def _mask_dims(call: Call, name: str) -> tuple[list[int | None], list[int | None]]:
    """The dims of batch and heads in the mask (..., S, S), which broadcasts: one list each, empty without a mask."""
    mask, q = call.maybe(name), call.inputs[0].shape
    if mask is None:
        return [], []
    dims: list[int | None] = []
    for d in (0, 1):
        position = d - 4 + len(mask.shape)
        dims.append(position if position >= 0 and mask.shape[position] == q[d] else None)
    return [dims[0]], [dims[1]]


def _attention_strategies(call: Call, mask: str, *, backward: bool) -> list[Strategy]:
    """By batch and by heads. Shapes: (batch, heads, tokens, head size); lse (batch, heads, tokens).

    In grouped-query attention a rank's query heads must match its key heads; a single key head is replicated.
    """
    batch, heads = _mask_dims(call, mask)
    shapes = [meta.shape for meta in call.inputs[1 if backward else 0 :][:3]]
    if any(len(shape) != 4 for shape in shapes) or call.operands.get("dropout_p", 0.0) != 0.0:
        return []
    q, kv = shapes[0][1], shapes[1][1]
    if q % kv:
        return []
    ties = () if q == kv or kv == 1 else (Tie(q, 1, kv, q // kv),)
    is_multi_query = kv == 1 and q > 1
    key = None if is_multi_query else 1
    offsets = _offsets(call)
    if not backward:
        by_batch = strategy([0, 0], [0, 0, 0, *batch, *offsets])
        return [by_batch, strategy([1, 1], [1, key, key, *heads, *offsets], ties=ties)]
    grad_key = P if is_multi_query else 1
    by_heads = strategy([1, grad_key, grad_key], [1, 1, key, key, 1, 1, *heads, *offsets], ties=ties)
    return [strategy([0, 0, 0], [*[0] * 6, *batch, *offsets]), by_heads]


def _offsets(call: Call) -> list[None]:
    """The placements of the offsets of positions that the call has."""
    return [None for name in ("q_offset", "k_offset") if call.maybe(name)]


def _by_queries(call: Call, *, backward: bool) -> list[Strategy]:
    """By queries, each rank with all keys and values; where it is causal, its queries count from its offset."""
    mask, tokens = call.maybe("mask"), call.meta("q").shape[-2]
    if len(call.meta("q").shape) != 4:
        return []
    in_mask = (
        [] if mask is None else [len(mask.shape) - 2 if len(mask.shape) > 1 and mask.shape[-2] == tokens else None]
    )
    lowering = Lowering.OFFSET if call.flag("causal") else None
    rest = [*in_mask, *_offsets(call)]
    if not backward:
        return [strategy([2, 2], [2, None, None, *rest], lowering=lowering)]
    fills = (0.0, 0.0, None, None, 0.0, 0.0, *(0.0 if d is not None else None for d in in_mask))
    return [strategy([2, P, P], [2, 2, None, None, 2, 2, *rest], fills=fills, lowering=lowering)]


def _by_ring(call: Call, *, backward: bool) -> list[Strategy]:
    """By tokens, queries and keys alike: blocks of keys and values go from rank to rank inside the op."""
    first = 1 if backward else 0
    query, key = (call.inputs[first + i].shape for i in (0, 1))
    if len(query) != 4:
        return []
    mask = call.maybe("mask")
    in_mask = [] if mask is None else [len(mask.shape) - 2 if mask.shape[-2:-1] == query[2:3] else None]
    rest = [*in_mask, *_offsets(call)]
    count = 6 if backward else 3
    by_tokens = strategy([2] * len(call.outputs), [*[2] * count, *rest], lowering=Lowering.RING)
    return [replace(by_tokens, divided=(query[2], key[2]))]


def attention(call: Call) -> list[Strategy]:
    """nn.attention(q, k, v, mask?, offsets?) -> (out, lse): by batch, by heads, by queries, by queries and keys."""
    others = _attention_strategies(call, "mask", backward=False)
    by_tokens = [*_by_queries(call, backward=False), *_by_ring(call, backward=False)]
    return [*others, *by_tokens] if others else []


def attention_backward(call: Call) -> list[Strategy]:
    """nn.attention_backward(grad_out, q, k, v, out, lse, mask?, offsets?) -> (dq, dk, dv)."""
    others = _attention_strategies(call, "mask", backward=True)
    by_tokens = [*_by_queries(call, backward=True), *_by_ring(call, backward=True)]
    return [*others, *by_tokens] if others else []


def merge_attention(call: Call) -> list[Strategy]:
    """nn.merge_attention(total, weight, highest, out, lse) -> (total, weight, highest): by batch, heads, queries."""
    return [strategy([d] * 3, [d] * 5) for d in range(3)]


def cpu_attention(call: Call) -> list[Strategy]:
    """aten's CPU flash attention -> (out, lse)."""
    return _attention_strategies(call, "attn_mask", backward=False)


def cpu_attention_backward(call: Call) -> list[Strategy]:
    """Backward of aten's CPU flash attention -> (dq, dk, dv)."""
    return _attention_strategies(call, "attn_mask", backward=True)


TABLE: dict[str, Rule] = {
    "nn.attention": attention,
    "nn.attention_backward": attention_backward,
    "nn.merge_attention": merge_attention,
    "aten._scaled_dot_product_flash_attention_for_cpu.default": cpu_attention,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward.default": cpu_attention_backward,
}
