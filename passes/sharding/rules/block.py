"""Rules of a transformer block's ops: attention, norms, rotary, cross-entropy; torch's own and the nn dialect's."""

from __future__ import annotations

from math import inf

from .builders import P, Rule, linear, row
from .call import Call
from .strategy import Lowering, Row, Tie

IGNORED_LABEL = -100
"""The label that cross-entropy leaves out where the op names none; torch's default."""


def _mask_dims(call: Call, name: str) -> tuple[list[int | None], list[int | None]]:
    """Where batch and heads are in the mask (..., S, S), which broadcasts: one list entry, or none without a mask."""
    mask, q = call.maybe(name), call.inputs[0].shape
    if mask is None:
        return [], []
    found: list[int | None] = []
    for d in (0, 1):
        place = d - 4 + len(mask.shape)
        found.append(place if place >= 0 and mask.shape[place] == q[d] else None)
    return [found[0]], [found[1]]


def _attention_rows(call: Call, mask: str, *, backward: bool) -> list[Row]:
    """Rows by batch and by heads. Shapes: (batch, heads, tokens, head size); lse (batch, heads, tokens).

    Where several query heads share a key head, both are cut at the same places; one key head for all is replicated.
    """
    batch, heads = _mask_dims(call, mask)
    shapes = [meta.shape for meta in call.inputs[1 if backward else 0 :][:3]]
    if any(len(shape) != 4 for shape in shapes) or call.operands.get("dropout_p", 0.0) != 0.0:
        return []
    q, kv = shapes[0][1], shapes[1][1]
    if q % kv:
        return []
    ties = () if q == kv or kv == 1 else (Tie(q, 1, kv, q // kv),)
    shared = kv == 1 and q > 1
    key = None if shared else 1
    if not backward:
        return [row([0, 0], [0, 0, 0, *batch]), row([1, 1], [1, key, key, *heads], ties=ties)]
    grad_key = P if shared else 1
    by_heads = row([1, grad_key, grad_key], [1, 1, key, key, 1, 1, *heads], ties=ties)
    return [row([0, 0, 0], [*[0] * 6, *batch]), by_heads]


def attention(call: Call) -> list[Row]:
    """nn.attention(q, k, v, mask?) -> (out, lse)."""
    return _attention_rows(call, "mask", backward=False)


def attention_backward(call: Call) -> list[Row]:
    """nn.attention_backward(grad_out, q, k, v, out, lse, mask?) -> (dq, dk, dv)."""
    return _attention_rows(call, "mask", backward=True)


def cpu_attention(call: Call) -> list[Row]:
    """aten's CPU flash attention -> (out, lse)."""
    return _attention_rows(call, "attn_mask", backward=False)


def cpu_attention_backward(call: Call) -> list[Row]:
    """Backward of aten's CPU flash attention -> (dq, dk, dv)."""
    return _attention_rows(call, "attn_mask", backward=True)


def matmul(call: Call) -> list[Row]:
    """nn.matmul(a (..., m, k), b (..., k, n)): by leading dims, by m, by n; by k into sums; linear in each."""
    m, n = len(call.out().shape) - 2, len(call.out().shape) - 1
    leading = [row([d], [d, d]) for d in range(m)]
    return [*leading, row([m], [m, None]), row([n], [None, n]), row([P], [n, m]), linear(call, "a"), linear(call, "b")]


def _leading(call: Call, x: str) -> range:
    """The dims of `x` that a norm does not normalise over."""
    rank, weight = len(call.meta(x).shape), call.maybe("weight")
    if "normalized_shape" in call.operands:
        return range(rank - len(call.integers("normalized_shape")))
    return range(rank - (len(weight.shape) if weight else 1))


def _by_leading(call: Call, x: str, outputs: tuple[str, ...]) -> list[Row]:
    """Rows by each leading dim: weight and bias whole, everything else cut; gradients of weight and bias are sums."""
    rows = []
    for d in _leading(call, x):
        given = [None if name in ("weight", "bias") else d for name in call.names()]
        rows.append(row([P if name == "sum" else d for name in outputs], given))
    return rows


def layer_norm(call: Call) -> list[Row]:
    """layer_norm(x, weight?, bias?) -> (y, mean, rstd): by leading dims."""
    return _by_leading(call, call.names()[0], ("y", "mean", "rstd"))


def layer_norm_backward(call: Call) -> list[Row]:
    """layer_norm_backward(dy, x, mean, rstd, weight?) -> (dx, dweight, dbias): by leading dims; linear in dy."""
    dy, x = call.names()[:2]
    return [*_by_leading(call, x, ("dx", "sum", "sum")), linear(call, dy)]


def rms_norm(call: Call) -> list[Row]:
    """nn.rms_norm(x, weight) -> (y, rstd): by leading dims."""
    return _by_leading(call, "x", ("y", "rstd"))


def rms_norm_backward(call: Call) -> list[Row]:
    """nn.rms_norm_backward(dy, x, rstd, weight) -> (dx, dweight): by leading dims; linear in dy."""
    return [*_by_leading(call, "x", ("dx", "sum")), linear(call, "dy")]


def rotary(call: Call) -> list[Row]:
    """nn.rotary(x (batch, heads, tokens, size), cos, sin (batch or 1, tokens, size)) -> y: by all but the head size."""
    x, cos = call.meta("x").shape, call.meta("cos").shape
    if len(x) != 4:
        return []
    batch = 0 if len(cos) >= 3 and cos[0] == x[0] else None
    head = 1 if len(cos) == 4 and cos[1] == x[1] else None
    token = len(cos) - 2
    rows = [row([d], [d, other, other]) for d, other in ((0, batch), (1, head), (2, token))]
    return [*rows, linear(call, "x")]


def _ignored(call: Call) -> float:
    given = call.operands.get("ignore_index")
    return float(given) if isinstance(given, int) else float(IGNORED_LABEL)


def cross_entropy(call: Call) -> list[Row]:
    """nn.cross_entropy(logits (N, V), labels (N)) -> (sum of losses, count, lse (N)).

    By N: sum and count are partial. By V: the loss communicates inside, and no rank holds all logits.
    """
    by_row = row([P, P, 0], [0, 0], fills=(0.0, _ignored(call)))
    return [by_row, row([None, None, None], [1, None], fills=(-inf, None), lowering=Lowering.SOFTMAX)]


def cross_entropy_backward(call: Call) -> list[Row]:
    """nn.cross_entropy_backward(scale, logits, labels, lse) -> dlogits: by N, and by V; linear in scale."""
    by_row = row([0], [None, 0, 0, 0], fills=(None, None, _ignored(call), None))
    by_class = row([1], [None, 1, None, None], lowering=Lowering.OFFSET)
    return [by_row, by_class, linear(call, "scale")]


def grouped_mm(call: Call) -> list[Row]:
    """grouped_mm(input, weight, offs) -> result: by output features, by input features (a partial sum)."""
    rows = [row([1], [None, 2, None]), row([P], [1, 1, None])]
    return [*rows, linear(call, "input"), linear(call, "weight")]


def grouped_mm_backward(call: Call) -> list[Row]:
    """grouped_mm_backward(input, weight, offs, grad_output) -> (input's, weight's gradient): linear in grad_output."""
    rows = [row([P, 2], [None, 2, None, 1]), row([1, 1], [1, 1, None, None])]
    return [*rows, linear(call, "grad_output")]


TABLE: dict[str, Rule] = {
    "nn.attention": attention,
    "nn.matmul": matmul,
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
    "transformers.grouped_mm_fallback.default": grouped_mm,
    "transformers.grouped_mm_fallback_backward.default": grouped_mm_backward,
}
