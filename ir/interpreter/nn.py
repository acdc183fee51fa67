"""The nn operations by their formulas, in elementary tensor algebra.

Letters: b batch, h heads, s and t tokens of queries and keys, d head size, v classes, c features. Where heads
are grouped, h queries share the keys and values of g heads: query head i reads head i // (h / g). Tensors of 16 bits
are computed in float32; a result with the dtype of an operand is rounded to it at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Results = tuple[Tensor | None, ...]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    q_offset: Tensor | None,
    k_offset: Tensor | None,
) -> Results:
    """out = softmax(q k^T scale + mask) v, and each row's log of the sum of exponentials; 0 and -inf without a key."""
    scores = _scores(q, k, mask, scale)
    weights, logsumexp = _weights(_causal(scores, q_offset, k_offset) if causal else scores)
    return torch.einsum("bhst,bhtd->bhsd", weights, _of_each_query(v, q)).to(v.dtype), logsumexp


def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    q_offset: Tensor | None,
    k_offset: Tensor | None,
) -> Results:
    """With P = exp(scores - logsumexp), dS = P (g V^T - sum(g out)): dV = P^T g, dQ = dS K scale, dK = dS^T Q scale.

    Where heads are grouped, dK and dV are sums over the query heads that share them.
    """
    wide, factor = _at_least_float32(grad), _factor(q, scale)
    scores = _scores(q, k, mask, scale)
    scores = _causal(scores, q_offset, k_offset) if causal else scores
    p = torch.where(logsumexp.isneginf()[..., None], 0.0, (scores - logsumexp[..., None]).exp())
    ds = p * (
        torch.einsum("bhsd,bhtd->bhst", wide, _of_each_query(v, q)) - (wide * _at_least_float32(out)).sum(-1)[..., None]
    )
    dq = torch.einsum("bhst,bhtd->bhsd", ds, _of_each_query(k, q)) * factor
    dk = torch.einsum("bhst,bhsd->bhtd", ds, _at_least_float32(q)) * factor
    dv = torch.einsum("bhst,bhsd->bhtd", p, wide)
    return dq.to(q.dtype), _summed_by_group(dk, k).to(k.dtype), _summed_by_group(dv, v).to(v.dtype)


def merge_attention(total: Tensor, weight: Tensor, highest: Tensor, out: Tensor, logsumexp: Tensor) -> Results:
    """Both parts brought to the larger of the two logarithms, and added; what has weight 0 stays 0."""
    larger = torch.where(logsumexp > highest, logsumexp, highest)
    old, new = (
        torch.where(each.isneginf(), torch.zeros_like(each), torch.exp(each - larger)) for each in (highest, logsumexp)
    )
    return (
        torch.einsum("bhs,bhsd->bhsd", old, total) + torch.einsum("bhs,bhsd->bhsd", new, _at_least_float32(out)),
        (old * weight + new),
        larger,
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Results:
    """rstd = (mean of squares + eps)^(-1/2); y = (x rstd, rounded to x's dtype) weight."""
    wide = _at_least_float32(x)
    rstd = (wide.square().sum(-1, keepdim=True) / x.shape[-1] + eps).pow(-0.5)
    return (wide * rstd).to(x.dtype) * weight, rstd


def rms_norm_backward(grad: Tensor, x: Tensor, rstd: Tensor, weight: Tensor) -> Results:
    """dx_i = rstd (g_i w_i) - x_i rstd^3 / C * sum_j (g_j w_j x_j); dw = sum over rows of g x rstd."""
    wide, weighted = _at_least_float32(x), _at_least_float32(grad) * _at_least_float32(weight)
    inner = (weighted * wide).sum(-1, keepdim=True)
    dx = rstd * weighted - wide * rstd.pow(3) * inner / x.shape[-1]
    dw = (_at_least_float32(grad) * wide * rstd).reshape(-1, x.shape[-1]).sum(0)
    return dx.to(x.dtype), dw.to(weight.dtype)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int], eps: float) -> Results:
    """y = (x - mean) rstd weight + bias over the last len(shape) dims, with the variance divided by their size."""
    wide, dims = _at_least_float32(x), _last(shape)
    mean = wide.mean(dims, keepdim=True)
    rstd = ((wide - mean).square().mean(dims, keepdim=True) + eps).pow(-0.5)
    y = (wide - mean) * rstd
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    return y.to(x.dtype), mean, rstd


def layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    shape: Sequence[int],
) -> Results:
    """With n = (x - mean) rstd, u = g weight: dx = rstd (u - mean(u) - n mean(u n)), dweight sums g n, dbias sums g."""
    wide, dims = _at_least_float32(grad), _last(shape)
    normal = (_at_least_float32(x) - mean) * rstd
    u = wide if weight is None else wide * weight
    dx = rstd * (u - u.mean(dims, keepdim=True) - normal * (u * normal).mean(dims, keepdim=True))
    rows = tuple(range(x.dim() - len(shape)))
    dweight = None if weight is None else _sum(wide * normal, rows).to(weight.dtype)
    dbias = None if bias is None else _sum(wide, rows).to(bias.dtype)
    return dx.to(x.dtype), dweight, dbias


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Results:
    """y_i = x_i cos_i - x_(i+D/2) sin_i in the last dim's first half, x_i cos_i + x_(i-D/2) sin_i in its second."""
    half, sign = x.shape[-1] // 2, _signs(x)
    return (x * cos[:, None] + x.roll(half, -1) * sign * sin[:, None],)


def rotary_backward(grad: Tensor, cos: Tensor, sin: Tensor) -> Results:
    """The transpose of `rotary`, which is linear in x."""
    half, sign = grad.shape[-1] // 2, _signs(grad)
    return (grad * cos[:, None] + (grad * sign * sin[:, None]).roll(half, -1),)


def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int) -> Results:
    """total = sum over rows not ignored of logsumexp - logit of the label; count of these rows; logsumexp."""
    wide = _at_least_float32(logits)
    highest = wide.amax(-1)
    logsumexp = (wide - highest[..., None]).exp().sum(-1).log() + highest
    chosen = torch.where(_one_hot(logits, labels), wide, 0.0).sum(-1)
    counted = labels != ignore_index
    losses = torch.where(counted, logsumexp - chosen, 0.0)
    return losses.sum(), counted.to(wide.dtype).sum(), logsumexp


def cross_entropy_backward(
    scale: Tensor, logits: Tensor, labels: Tensor, logsumexp: Tensor, ignore_index: int
) -> Results:
    """(softmax - one-hot of the label) scale; zero in ignored rows."""
    softmax = (_at_least_float32(logits) - logsumexp[..., None]).exp()
    gradient = (softmax - _one_hot(logits, labels).to(softmax.dtype)) * scale
    return (torch.where((labels != ignore_index)[..., None], gradient, 0.0).to(logits.dtype),)


def nll_loss(scores: Tensor, labels: Tensor, weight: Tensor | None, ignore_index: int) -> Results:
    """-weight_label score_label of each row; 0 in ignored rows."""
    factors = _label_weights(scores, labels, weight)
    losses = -(torch.where(_one_hot(scores, labels), _at_least_float32(scores), 0.0) * factors).sum(-1)
    return (torch.where(labels != ignore_index, losses, 0.0).to(scores.dtype),)


def nll_loss_backward(
    grad: Tensor, scores: Tensor, labels: Tensor, weight: Tensor | None, ignore_index: int
) -> Results:
    """-grad weight_label at the label, 0 elsewhere and in ignored rows."""
    at_label = _one_hot(scores, labels) & (labels != ignore_index)[..., None]
    gradient = -_at_least_float32(grad)[..., None] * _label_weights(scores, labels, weight)
    return (torch.where(at_label, gradient, 0.0).to(scores.dtype),)


def matmul(a: Tensor, b: Tensor) -> Results:
    """a b over the last two dims."""
    return (torch.einsum("...mk,...kn->...mn", _at_least_float32(a), _at_least_float32(b)).to(a.dtype),)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Results:
    """x weight + bias over the last dim."""
    product = torch.einsum("...k,kn->...n", _at_least_float32(x), _at_least_float32(weight))
    return ((product if bias is None else product + _at_least_float32(bias)).to(x.dtype),)


def sum_of_outer_products(a: Tensor, b: Tensor) -> Results:
    """The sum over all rows of the outer product of a's and b's row."""
    wide = [_at_least_float32(tensor).reshape(-1, tensor.shape[-1]) for tensor in (a, b)]
    return (torch.einsum("rm,rn->mn", *wide).to(a.dtype),)


def expert_linear(x: Tensor, weight: Tensor, experts: Tensor, bound: float | None, capacity: int | None) -> Results:
    """Each row times the matrix of its expert; NaN for a row of none, and zeros if it was dropped for a capacity."""
    result = x.new_full((*x.shape[:-1], weight.shape[2]), float("nan"))
    for expert, matrix in enumerate(weight):
        chosen = experts == expert
        result[chosen] = (_at_least_float32(x[chosen]) @ _at_least_float32(matrix)).to(x.dtype)
    if capacity is not None:
        result[experts == weight.shape[0]] = 0
    return (result,)


def expert_outer_products(
    a: Tensor, b: Tensor, experts: Tensor, weight: Tensor, bound: float | None, capacity: int | None
) -> Results:
    """For each expert, the sum over its rows of the outer product of a's and b's row."""
    return (outer_products_by_expert(a, b, experts, weight.shape[0]),)


def outer_products_by_expert(a: Tensor, b: Tensor, experts: Tensor, count: int) -> Tensor:
    """The sums for experts 0 to `count`, stacked."""
    sums = [
        torch.einsum("rm,rn->mn", _at_least_float32(a[chosen]), _at_least_float32(b[chosen])).to(a.dtype)
        for chosen in (experts == expert for expert in range(count))
    ]
    return torch.stack(sums)


def kept_experts(experts: Tensor, count: int, capacity: int) -> Results:
    """The experts, but `count` for each row that `capacity` rows of its expert stand before."""
    kept, taken = experts.flatten().tolist(), [0] * count
    for row, expert in enumerate(kept):
        taken[expert] += 1
        if taken[expert] > capacity:
            kept[row] = count
    return (torch.tensor(kept, dtype=experts.dtype).reshape(experts.shape),)


_OPERATIONS: dict[str, tuple[Callable[..., Results], int]] = {
    "nn.attention": (attention, 8),
    "nn.attention_backward": (attention_backward, 11),
    "nn.merge_attention": (merge_attention, 5),
    "nn.rms_norm": (rms_norm, 3),
    "nn.rms_norm_backward": (rms_norm_backward, 4),
    "nn.layer_norm": (layer_norm, 5),
    "nn.layer_norm_backward": (layer_norm_backward, 7),
    "nn.rotary": (rotary, 3),
    "nn.rotary_backward": (rotary_backward, 3),
    "nn.cross_entropy": (cross_entropy, 3),
    "nn.cross_entropy_backward": (cross_entropy_backward, 5),
    "nn.nll_loss": (nll_loss, 4),
    "nn.nll_loss_backward": (nll_loss_backward, 5),
    "nn.matmul": (matmul, 2),
    "nn.linear": (linear, 3),
    "nn.sum_of_outer_products": (sum_of_outer_products, 2),
    "nn.expert_linear": (expert_linear, 5),
    "nn.expert_outer_products": (expert_outer_products, 6),
    "nn.kept_experts": (kept_experts, 3),
}
"""The function of each operation, with its number of arguments."""


def has_meaning(name: str) -> bool:
    """Whether this is an nn operation."""
    return name in _OPERATIONS


def evaluate(name: str, args: Sequence[Any]) -> Results:
    """The results of an nn operation; trailing arguments left out are None."""
    function, count = _OPERATIONS[name]
    return function(*args, *[None] * (count - len(args)))


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32) if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _factor(q: Tensor, scale: float | None) -> float:
    return 1.0 / float(q.shape[-1]) ** 0.5 if scale is None else scale


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    scores = torch.einsum("bhsd,bhtd->bhst", _at_least_float32(q), _of_each_query(k, q)) * _factor(q, scale)
    return scores if mask is None else scores + mask


def _causal(scores: Tensor, q_offset: Tensor | None, k_offset: Tensor | None) -> Tensor:
    """Scores (b, h, s, t) that are -inf where the key comes after the query."""
    queries, keys = torch.arange(scores.shape[2]), torch.arange(scores.shape[3])
    queries = queries if q_offset is None else queries + q_offset
    keys = keys if k_offset is None else keys + k_offset
    return torch.where(keys[None, :] > queries[:, None], float("-inf"), scores)


def _of_each_query(shared: Tensor, q: Tensor) -> Tensor:
    """The keys or values (b, g, t, d) that each query head reads: (b, h, t, d)."""
    groups = shared.shape[1]
    members = q.shape[1] // groups
    return _at_least_float32(shared)[:, torch.arange(groups * members) // members]


def _summed_by_group(gradient: Tensor, shared: Tensor) -> Tensor:
    """The sum over the query heads of each group: (b, h, t, d) to (b, g, t, d)."""
    batch, _, *rest = gradient.shape
    return gradient.reshape(batch, shared.shape[1], -1, *rest).sum(2)


def _weights(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax of the scores and their logsumexp, computed from scores minus their maximum."""
    highest = scores.amax(-1, keepdim=True)
    shifted = torch.where(highest.isneginf(), 0.0, (scores - highest).exp())
    total = shifted.sum(-1, keepdim=True)
    return torch.where(total == 0, 0.0, shifted / total), (total.log() + highest).squeeze(-1)


def _last(shape: Sequence[int]) -> list[int]:
    return list(range(-len(shape), 0))


def _sum(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The sum over some dims; over none, the tensor (torch would sum over all)."""
    return tensor.sum(dims) if dims else tensor


def _signs(x: Tensor) -> Tensor:
    """-1 in the first half of the last dim, 1 in the second."""
    half = x.shape[-1] // 2
    signs = torch.ones(x.shape[-1], dtype=x.dtype)
    signs[:half] = -1
    return signs


def _label_weights(scores: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
    """(v): the factor of each class; ones where classes have no weights."""
    return torch.ones_like(scores[..., :1]) if weight is None else _at_least_float32(weight)


def _one_hot(logits: Tensor, labels: Tensor) -> Tensor:
    """(..., v): whether the class is the row's label; a label out of range matches no class."""
    return labels[..., None] == torch.arange(logits.shape[-1])
