"""The semantics of every nn operation, as plain torch functions with the operations' own arguments and results.

B batch, H heads, S and T tokens of queries and keys, D head size, V classes, C features. Inputs of 16 bits are
summed in float32 (`_wide`); `rstd`, `logsumexp`, `total` and `count` then are float32. `lower-idioms` traces these
functions, so a program has them as operations that every target has.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    q_offset: Tensor | None = None,
    k_offset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(query @ key^T * scale + mask) @ value, and the logsumexp of each row of scores.

    query (B, H, S, D); key and value (B, G, T, D), where query head i reads head i // (H / G); mask, added to the
    scores, broadcasts to (B, H, S, T); `causal` hides key j from query i where i + q_offset < j + k_offset (0-d); scale
    is 1 / sqrt(D) where it is None. Returns (B, H, S, D) and (B, H, S): 0 and -inf for a query that sees no key.
    """
    scores = _scores(query, key, causal_mask(query, key, mask, q_offset, k_offset) if causal else mask, scale)
    logsumexp = torch.logsumexp(scores, -1)
    return (_shares(scores, logsumexp) @ _wide(_of_each_query(value, query))).to(value.dtype), logsumexp


def attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    q_offset: Tensor | None = None,
    k_offset: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, from the weights exp(scores - logsumexp)."""
    hidden = causal_mask(query, key, mask, q_offset, k_offset) if causal else mask
    weights = _shares(_scores(query, key, hidden, scale), logsumexp)
    wide = _wide(grad)
    grad_value = weights.transpose(-1, -2) @ wide
    grad_weights = wide @ _wide(_of_each_query(value, query)).transpose(-1, -2)
    grad_scores = weights * (grad_weights - (wide * _wide(out)).sum(-1, keepdim=True)) * _scale(query, scale)
    grad_query = grad_scores @ _wide(_of_each_query(key, query))
    grad_key = grad_scores.transpose(-1, -2) @ _wide(query)
    grad_key, grad_value = _of_each_key(grad_key, key), _of_each_key(grad_value, value)
    return grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value.to(value.dtype)


def merge_attention(
    total: Tensor, weight: Tensor, highest: Tensor, out: Tensor, logsumexp: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Add `out`, the softmax of a further part of the keys: total * exp(highest - h) + out * exp(logsumexp - h).

    h is the larger of `highest` and `logsumexp`; so for the weights, of which the new part's is 1. total, out
    (B, H, S, D), the others (B, H, S). The total is not divided by its weight here, so that rows in which each
    logsumexp is the same huge number, as a finite mask makes them, still get the mean of their parts.
    """
    merged = torch.maximum(highest, logsumexp)
    before, added = (torch.where(part == float("-inf"), 0.0, torch.exp(part - merged)) for part in (highest, logsumexp))
    outs = total * before.unsqueeze(-1) + _wide(out) * added.unsqueeze(-1)
    return outs, weight * before + added, merged


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y = x * rstd * weight with rstd = 1 / sqrt(mean(x^2, -1) + eps).

    x (..., C), weight (C); returns y (..., C) and rstd (..., 1). The product x * rstd is rounded to x's dtype first.
    """
    wide = _wide(x)
    rstd = torch.rsqrt((wide * wide).mean(-1, keepdim=True) + eps)
    return (wide * rstd).to(x.dtype) * weight, rstd


def rms_norm_backward(grad: Tensor, x: Tensor, rstd: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """grad_x = (g - n * mean(g * n, -1)) * rstd and grad_weight = sum(grad * n); n = x * rstd, g = grad * weight."""
    normal = _wide(x) * rstd
    grad_weight = (grad * normal.to(x.dtype)).sum(tuple(range(x.dim() - 1)))
    inner = (grad * weight).to(rstd.dtype)
    grad_x = (inner - normal * (inner * normal).mean(-1, keepdim=True)) * rstd
    return grad_x.to(x.dtype), grad_weight.to(weight.dtype)


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: list[int], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """y = (x - mean) * rstd * weight + bias over the last len(shape) dims; mean and rstd keep those dims as 1."""
    y, mean, rstd = torch.ops.aten.native_layer_norm.default(x, shape, weight, bias, eps)
    return y, mean, rstd


def layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    shape: list[int],
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of x, and of weight and bias if present."""
    mask = [True, weight is not None, bias is not None]
    grad_x, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward.default(
        grad, x, shape, mean, rstd, weight, bias, mask
    )
    return grad_x, grad_weight, grad_bias


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x * cos + rotate_half(x) * sin with rotate_half([a, b]) = [-b, a] over the halves of the last dim.

    x (B, H, S, D); cos and sin (B or 1, S, D).
    """
    low, high = _halves(x)
    return x * cos.unsqueeze(1) + torch.cat([-high, low], -1) * sin.unsqueeze(1)


def rotary_backward(grad: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """grad * cos + [v, -u] with [u, v] = grad * sin: the transpose of `rotary`."""
    low, high = _halves(grad * sin.unsqueeze(1))
    return grad * cos.unsqueeze(1) + torch.cat([high, -low], -1)


def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """total = sum over valid rows of logsumexp - logit[label]; count of valid rows; logsumexp (...).

    logits (..., V), labels (...). A row is valid where its label is not `ignore_index`. A label outside [0, V) reads
    the nearest class, never memory out of bounds.
    """
    wide = _rows(_wide(logits))
    logsumexp = torch.logsumexp(wide, 1)
    valid, index = _valid_and_index(labels, ignore_index)
    losses = logsumexp - wide.gather(1, index).squeeze(1)
    total, count = torch.where(valid, losses, 0.0).sum(), valid.sum(dtype=wide.dtype)
    return total, count, logsumexp.reshape(labels.shape)


def cross_entropy_backward(
    scale: Tensor, logits: Tensor, labels: Tensor, logsumexp: Tensor, ignore_index: int
) -> Tensor:
    """(softmax(logits) - onehot(labels)) * scale, zero in ignored rows whatever `scale` (0-d) is there."""
    valid, index = _valid_and_index(labels, ignore_index)
    rows = torch.where(valid, scale, 0.0).unsqueeze(1)
    softmax = torch.exp(_rows(_wide(logits)) - logsumexp.reshape(logsumexp.numel(), 1))
    return (softmax * rows).scatter_add(1, index, -rows).to(logits.dtype).reshape(logits.shape)


def nll_loss(scores: Tensor, labels: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """torch's loss of each row, which refuses a label outside [0, V); scores (..., V), labels (...), weight (V)."""
    rows, each = _rows(scores), labels.reshape(labels.numel())
    losses: Tensor = torch.ops.aten.nll_loss_forward.default(rows, each, weight, 0, ignore_index)[0]
    return losses.reshape(labels.shape)


def nll_loss_backward(grad: Tensor, scores: Tensor, labels: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """The gradient of the scores, from that of each row's loss; grad (...)."""
    rows, each, of_rows = _rows(scores), labels.reshape(labels.numel()), grad.reshape(grad.numel())
    count = torch.zeros((), dtype=scores.dtype, device=scores.device)
    gradient: Tensor = torch.ops.aten.nll_loss_backward.default(of_rows, rows, each, weight, 0, ignore_index, count)
    return gradient.reshape(scores.shape)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b over the last two dims; a (..., M, K), b (..., K, N), of the same leading dims."""
    product = torch.bmm(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]))
    return product.reshape(*a.shape[:-1], b.shape[-1])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight + bias over the last dim; x (..., K), weight (K, N), bias (N)."""
    product = torch.mm(_rows(x), weight) if bias is None else torch.addmm(bias, _rows(x), weight)
    return product.reshape(*x.shape[:-1], weight.shape[1])


def sum_of_outer_products(a: Tensor, b: Tensor) -> Tensor:
    """The sum over all rows of a's row times b's; a (..., M), b (..., N) -> (M, N)."""
    return torch.mm(_rows(a).t(), _rows(b))


def expert_linear(
    x: Tensor, weight: Tensor, experts: Tensor, bound: float | None = None, capacity: int | None = None
) -> Tensor:
    """Each row times the matrix of its expert; x (..., K), weight (E, K, N), experts (...)."""
    order, ends = _by_expert(experts, weight.shape[0])
    products: Tensor = torch.ops.stretto.grouped_mm.default(_rows(x)[order], weight, ends)
    return products[torch.argsort(order)].reshape(*x.shape[:-1], weight.shape[2])


def expert_outer_products(
    a: Tensor, b: Tensor, experts: Tensor, weight: Tensor, bound: float | None = None, capacity: int | None = None
) -> Tensor:
    """For each expert, the sum over its rows of a's row times b's; a (..., M), b (..., N), weight (E, M, N)."""
    order, ends = _by_expert(experts, weight.shape[0])
    sums: Tensor = torch.ops.stretto.grouped_outer_products.default(_rows(a)[order], _rows(b)[order], ends)
    return sums


def kept_experts(experts: Tensor, count: int, capacity: int) -> Tensor:
    """The experts of rows, but `count` for each row that `capacity` rows of its expert stand before."""
    ordered, order = torch.sort(experts.reshape(-1), stable=True)
    starts = torch.searchsorted(ordered, ordered)
    position = torch.arange(len(ordered), device=ordered.device) - starts
    kept = torch.where(position < capacity, ordered, count)
    return kept[torch.argsort(order)].reshape(experts.shape)


REFERENCE: dict[str, Callable[..., Tensor | tuple[Tensor | None, ...]]] = {
    "nn.attention": attention,
    "nn.attention_backward": attention_backward,
    "nn.merge_attention": merge_attention,
    "nn.rms_norm": rms_norm,
    "nn.rms_norm_backward": rms_norm_backward,
    "nn.layer_norm": layer_norm,
    "nn.layer_norm_backward": layer_norm_backward,
    "nn.rotary": rotary,
    "nn.rotary_backward": rotary_backward,
    "nn.cross_entropy": cross_entropy,
    "nn.cross_entropy_backward": cross_entropy_backward,
    "nn.nll_loss": nll_loss,
    "nn.nll_loss_backward": nll_loss_backward,
    "nn.matmul": matmul,
    "nn.linear": linear,
    "nn.sum_of_outer_products": sum_of_outer_products,
    "nn.expert_linear": expert_linear,
    "nn.expert_outer_products": expert_outer_products,
    "nn.kept_experts": kept_experts,
}
"""The function of each nn operation."""


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype.itemsize == 2 else tensor


def _scale(query: Tensor, scale: float | None) -> float:
    return float(query.shape[-1]) ** -0.5 if scale is None else scale


def causal_mask(
    query: Tensor, key: Tensor, mask: Tensor | None, q_offset: Tensor | None, k_offset: Tensor | None
) -> Tensor:
    """(S, T), or the shape of `mask`, which is added: -inf where a key's position comes after the query's."""
    queries = torch.arange(query.shape[-2], device=query.device)
    keys = torch.arange(key.shape[-2], device=query.device)
    queries = queries if q_offset is None else queries + q_offset
    keys = keys if k_offset is None else keys + k_offset
    visible = torch.zeros((), dtype=query.dtype, device=query.device) if mask is None else mask
    return torch.where(keys > queries.unsqueeze(-1), float("-inf"), visible)


def _scores(query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    scores = _wide(query) @ _wide(_of_each_query(key, query)).transpose(-1, -2) * _scale(query, scale)
    return scores if mask is None else scores + mask


def _of_each_query(tensor: Tensor, query: Tensor) -> Tensor:
    """(B, H, T, D): for each head of queries, the head of keys or values (B, G, T, D) that it reads."""
    batch, heads, tokens, size = tensor.shape
    if heads == query.shape[1]:
        return tensor
    shared = tensor.unsqueeze(2).expand(batch, heads, query.shape[1] // heads, tokens, size)
    return shared.reshape(batch, query.shape[1], tokens, size)


def _of_each_key(grad: Tensor, tensor: Tensor) -> Tensor:
    """(B, G, T, D): for each head of keys or values, the sum of the gradients (B, H, T, D) of those that read it."""
    batch, heads, tokens, size = tensor.shape
    if heads == grad.shape[1]:
        return grad
    return grad.reshape(batch, heads, grad.shape[1] // heads, tokens, size).sum(2)


def _shares(scores: Tensor, logsumexp: Tensor) -> Tensor:
    """exp(scores - logsumexp), 0 where a query sees no key."""
    rows = logsumexp.unsqueeze(-1)
    return torch.where(rows == float("-inf"), 0.0, torch.exp(scores - rows))


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def _rows(tensor: Tensor) -> Tensor:
    """The tensor as a matrix of its rows."""
    return tensor.reshape(prod(tensor.shape[:-1]), tensor.shape[-1])


def _by_expert(experts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The rows in the order of their experts, those of none last, and where each expert's rows end there."""
    flat = experts.reshape(experts.numel())
    sorted_experts, order = torch.sort(torch.where(flat < 0, count, flat), stable=True)
    return order, torch.searchsorted(sorted_experts, torch.arange(count, device=flat.device), right=True)


def _valid_and_index(labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    labels = labels.reshape(labels.numel())
    valid = labels != ignore_index
    return valid, torch.where(valid, labels, 0).unsqueeze(1)
