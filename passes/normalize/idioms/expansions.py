"""The torch function of each nn operation on the CPU: a kernel if torch has one, else the reference."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .reference import REFERENCE


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
        query, key, value, 0.0, causal, attn_mask=mask, scale=scale
    )
    return out, logsumexp


def _attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_query, grad_key, grad_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default(
        grad, query, key, value, out, logsumexp, 0.0, causal, attn_mask=mask, scale=scale
    )
    return grad_query, grad_key, grad_value


EXPANSIONS: dict[str, Callable[..., Tensor | tuple[Tensor | None, ...]]] = {
    **REFERENCE,
    "nn.attention": _attention,
    "nn.attention_backward": _attention_backward,
}
"""The function that `lower-idioms` expands each nn operation to."""
