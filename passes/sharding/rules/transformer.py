"""Rules of a transformer block's ops, torch's own and the nn dialect's: norms, rotary, losses, matrix products."""

from __future__ import annotations

from math import inf

from ....ir.placement import AxisPlacement
from .builders import P, Rule, linear, strategy
from .call import Call
from .strategy import Lowering, Strategy

DEFAULT_IGNORE_INDEX = -100
"""The label that cross-entropy ignores where the op names none; torch's default."""


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


def nll_loss(call: Call) -> list[Strategy]:
    """nn.nll_loss(scores (..., V), labels (...), weight?) -> (...): by leading dims, by V (a partial sum).

    A row that pads a chunk has an ignored label. By V a rank has the terms of its classes' labels.
    """
    classes, weight = len(call.meta("scores").shape) - 1, [None] if call.maybe("weight") else []
    fills = (0.0, _ignore_index(call), *weight)
    by_row = [strategy([d], [d, d, *weight], fills=fills) for d in range(classes)]
    return [*by_row, strategy([P], [classes, None, *weight], lowering=Lowering.OFFSET)]


def nll_loss_backward(call: Call) -> list[Strategy]:
    """nn.nll_loss_backward(grad (...), scores, labels, weight?) -> (..., V): by leading dims, by V; linear in grad."""
    classes, weight = len(call.out().shape) - 1, [None] if call.maybe("weight") else []
    fills = (None, None, _ignore_index(call), *weight)
    by_row = [strategy([d], [d, d, d, *weight], fills=fills) for d in range(classes)]
    by_class = strategy([classes], [None, classes, None, *weight], lowering=Lowering.OFFSET)
    return [*by_row, by_class, linear(call, "grad")]


def grouped_mm(call: Call) -> list[Strategy]:
    """grouped_mm(input, weight, offs) -> result: by output features, by input features (a partial sum)."""
    strategies = [strategy([1], [None, 2, None]), strategy([P], [1, 1, None])]
    return [*strategies, linear(call, "input"), linear(call, "weight")]


def grouped_mm_backward(call: Call) -> list[Strategy]:
    """grouped_mm_backward(input, weight, offs, grad_output) -> (input's, weight's gradient): linear in grad_output."""
    strategies = [strategy([P, 2], [None, 2, None, 1]), strategy([1, 1], [1, 1, None, None])]
    return [*strategies, linear(call, "grad_output")]


TABLE: dict[str, Rule] = {
    "nn.matmul": matmul,
    "nn.linear": linear_layer,
    "nn.sum_of_outer_products": sum_of_outer_products,
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
    "nn.nll_loss": nll_loss,
    "nn.nll_loss_backward": nll_loss_backward,
    "stretto.grouped_mm.default": grouped_mm,
    "stretto.grouped_mm_backward.default": grouped_mm_backward,
}
