"""Rules of a transformer block's ops: attention, norms, rotary, cross-entropy; torch's own and the nn dialect's."""

from __future__ import annotations

from math import inf

from ....ir.placement import AxisPlacement
from .builders import P, Rule, linear, strategy
from .call import Call
from .strategy import Lowering, Strategy, Tie

DEFAULT_IGNORE_INDEX = -100
"""The label that cross-entropy ignores where the op names none; torch's default."""


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


def _queries_in_mask(call: Call) -> list[int | None]:
    """The dim of the queries in the mask (..., S, T); None where it broadcasts over them, empty without a mask."""
    mask, queries = call.maybe("mask"), call.meta("q").shape[2]
    if mask is None:
        return []
    return [len(mask.shape) - 2 if len(mask.shape) > 1 and mask.shape[-2] == queries else None]


def attention(call: Call) -> list[Strategy]:
    """nn.attention(q, k, v, mask?, offsets?) -> (out, lse): by batch, by heads, by queries."""
    others = _attention_strategies(call, "mask", backward=False)
    return [*others, *_by_queries(call, backward=False)] if others else []


def attention_backward(call: Call) -> list[Strategy]:
    """nn.attention_backward(grad_out, q, k, v, out, lse, mask?, offsets?) -> (dq, dk, dv)."""
    others = _attention_strategies(call, "mask", backward=True)
    return [*others, *_by_queries(call, backward=True)] if others else []


def cpu_attention(call: Call) -> list[Strategy]:
    """aten's CPU flash attention -> (out, lse)."""
    return _attention_strategies(call, "attn_mask", backward=False)


def cpu_attention_backward(call: Call) -> list[Strategy]:
    """Backward of aten's CPU flash attention -> (dq, dk, dv)."""
    return _attention_strategies(call, "attn_mask", backward=True)


def matmul(call: Call) -> list[Strategy]:
    """nn.matmul(a (..., m, k), b (..., k, n)): by leading dims, by m, by n; by k (a partial sum); linear in each."""
    m, n = len(call.out().shape) - 2, len(call.out().shape) - 1
    leading = [strategy([d], [d, d]) for d in range(m)]
    return [
        *leading,
        strategy([m], [m, None]),
        strategy([n], [None, n]),
        strategy([P], [n, m]),
        linear(call, "a"),
        linear(call, "b"),
    ]


def linear_layer(call: Call) -> list[Strategy]:
    """nn.linear(x (..., k), weight (k, n), bias?) -> (..., n): by k (a partial sum), by leading dims, by n; linear."""
    last = len(call.out().shape) - 1
    bias = (None,) if call.maybe("bias") else ()
    by_feature: list[int | AxisPlacement | None] = [None, 1, *(0 for _ in bias)]
    return [
        strategy([P], [last, 0, *(P for _ in bias)]),
        *(strategy([d], [d, None, *bias]) for d in range(last)),
        strategy([last], by_feature),
        linear(call, "x", "bias"),
        linear(call, "weight", "bias"),
    ]


def sum_of_outer_products(call: Call) -> list[Strategy]:
    """nn.sum_of_outer_products(a (..., m), b (..., n)) -> (m, n): by leading dims (partial), by m, by n."""
    last = len(call.inputs[0].shape) - 1
    return [
        *(strategy([P], [d, d]) for d in range(last)),
        strategy([0], [last, None]),
        strategy([1], [None, last]),
        linear(call, "a"),
        linear(call, "b"),
    ]


def _leading(call: Call, x: str) -> range:
    """The dims of `x` that a norm does not normalise over."""
    rank, weight = len(call.meta(x).shape), call.maybe("weight")
    if "normalized_shape" in call.operands:
        return range(rank - len(call.integers("normalized_shape")))
    return range(rank - (len(weight.shape) if weight else 1))


def _by_leading(call: Call, x: str, outputs: tuple[str, ...]) -> list[Strategy]:
    """By each leading dim: weight and bias replicated, all else sharded; their gradients are partial sums."""
    strategies = []
    for d in _leading(call, x):
        inputs = [None if name in ("weight", "bias") else d for name in call.names()]
        strategies.append(strategy([P if name == "sum" else d for name in outputs], inputs))
    return strategies


def layer_norm(call: Call) -> list[Strategy]:
    """layer_norm(x, weight?, bias?) -> (y, mean, rstd): by leading dims."""
    return _by_leading(call, call.names()[0], ("y", "mean", "rstd"))


def layer_norm_backward(call: Call) -> list[Strategy]:
    """layer_norm_backward(dy, x, mean, rstd, weight?) -> (dx, dweight, dbias): by leading dims; linear in dy."""
    dy, x = call.names()[:2]
    return [*_by_leading(call, x, ("dx", "sum", "sum")), linear(call, dy)]


def rms_norm(call: Call) -> list[Strategy]:
    """nn.rms_norm(x, weight) -> (y, rstd): by leading dims."""
    return _by_leading(call, "x", ("y", "rstd"))


def rms_norm_backward(call: Call) -> list[Strategy]:
    """nn.rms_norm_backward(dy, x, rstd, weight) -> (dx, dweight): by leading dims; linear in dy."""
    return [*_by_leading(call, "x", ("dx", "sum")), linear(call, "dy")]


def rotary(call: Call) -> list[Strategy]:
    """nn.rotary(x (batch, heads, tokens, size), cos, sin (batch or 1, tokens, size)) -> y: by all but the head size."""
    x, cos = call.meta("x").shape, call.meta("cos").shape
    if len(x) != 4:
        return []
    batch = 0 if len(cos) >= 3 and cos[0] == x[0] else None
    head = 1 if len(cos) == 4 and cos[1] == x[1] else None
    token = len(cos) - 2
    strategies = [strategy([d], [d, cos_dim, cos_dim]) for d, cos_dim in ((0, batch), (1, head), (2, token))]
    return [*strategies, linear(call, "x")]


def _ignore_index(call: Call) -> float:
    label = call.operands.get("ignore_index")
    return float(label) if isinstance(label, int) else float(DEFAULT_IGNORE_INDEX)


def cross_entropy(call: Call) -> list[Strategy]:
    """nn.cross_entropy(logits (..., V), labels (...)) -> (sum of losses, count, lse (...)).

    By a leading dim: sum and count are partial. By V: the loss all-reduces its statistics inside, and no rank holds all
    logits.
    """
    classes = len(call.meta("logits").shape) - 1
    by_row = [strategy([P, P, d], [d, d], fills=(0.0, _ignore_index(call))) for d in range(classes)]
    by_class = strategy([None, None, None], [classes, None], fills=(-inf, None), lowering=Lowering.SOFTMAX)
    return [*by_row, by_class]


def cross_entropy_backward(call: Call) -> list[Strategy]:
    """nn.cross_entropy_backward(scale, logits, labels, lse) -> dlogits: by leading dims, and by V; linear in scale."""
    classes = len(call.out().shape) - 1
    fills = (None, None, _ignore_index(call), None)
    by_row = [strategy([d], [None, d, d, d], fills=fills) for d in range(classes)]
    by_class = strategy([classes], [None, classes, None, None], lowering=Lowering.OFFSET)
    return [*by_row, by_class, linear(call, "scale")]


def grouped_mm(call: Call) -> list[Strategy]:
    """grouped_mm(input, weight, offs) -> result: by output features, by input features (a partial sum)."""
    strategies = [strategy([1], [None, 2, None]), strategy([P], [1, 1, None])]
    return [*strategies, linear(call, "input"), linear(call, "weight")]


def grouped_mm_backward(call: Call) -> list[Strategy]:
    """grouped_mm_backward(input, weight, offs, grad_output) -> (input's, weight's gradient): linear in grad_output."""
    strategies = [strategy([P, 2], [None, 2, None, 1]), strategy([1, 1], [1, 1, None, None])]
    return [*strategies, linear(call, "grad_output")]


TABLE: dict[str, Rule] = {
    "nn.attention": attention,
    "nn.matmul": matmul,
    "nn.linear": linear_layer,
    "nn.sum_of_outer_products": sum_of_outer_products,
    "nn.attention_backward": attention_backward,
    "aten._scaled_dot_product_flash_attention_for_cpu.default": cpu_attention,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward.default": cpu_attention_backward,
    "nn.layer_norm": layer_norm,
    "aten.native_layer_norm.default": layer_norm,
    "nn.layer_norm_backward": layer_norm_backward,
    "aten.native_layer_norm_backward.default": layer_norm_backward,
    "nn.rms_norm": rms_norm,
    "nn.rms_norm_backward": rms_norm_backward,
    "nn.rotary": rotary,
    "nn.rotary_backward": rotary,
    "nn.cross_entropy": cross_entropy,
    "nn.cross_entropy_backward": cross_entropy_backward,
    "stretto.grouped_mm.default": grouped_mm,
    "stretto.grouped_mm_backward.default": grouped_mm_backward,
}
