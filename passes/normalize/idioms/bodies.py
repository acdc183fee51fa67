"""The idioms that become functions of their own, and the bodies of these: torch functions of what every target has.

A body is the reference of the operation, with results that lie in memory as those of the kernels that stand in for it:
attention gives its result in the layout of the query, and gradients token by token. Views that follow stay views.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .reference import REFERENCE


def _attention(query: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    out, logsumexp = REFERENCE["nn.attention"](query, *args)
    assert out is not None
    assert logsumexp is not None
    never = torch.zeros((), dtype=torch.bool, device=query.device)
    return torch.where(never, query, out), logsumexp  # an elementwise result lies as its first operand does


def _attention_backward(*args: Any) -> tuple[Tensor, ...]:
    return tuple(_by_token(grad) for grad in REFERENCE["nn.attention_backward"](*args) if grad is not None)


def _by_token(tensor: Tensor) -> Tensor:
    """(B, H, S, D) in the memory of (B, S, H, D)."""
    batch, heads, tokens, size = tensor.shape
    rows = tensor.transpose(1, 2).reshape(batch, tokens, heads * size)
    return rows.reshape(batch, tokens, heads, size).transpose(1, 2)


def _like_query(query: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.float32 if query.dtype.itemsize == 2 else query.dtype
    return torch.empty_like(query), query.new_empty(query.shape[:-1], dtype=dtype)


def _tokens_first(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_permuted(each.shape, (0, 2, 1, 3), dtype=each.dtype, device="meta") for each in args[:3])


BODIES: dict[str, Callable[..., Any]] = {
    **REFERENCE,
    "nn.attention": _attention,
    "nn.attention_backward": _attention_backward,
}
"""The body of each operation that can be a function of its own."""
LAYOUTS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "nn.attention": _like_query,
    "nn.attention_backward": _tokens_first,
}
"""Of tensors without memory: what a body gives, without the ops between."""
