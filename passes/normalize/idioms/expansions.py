"""The torch function of each nn operation on the CPU: a kernel if torch has one, else the reference."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .reference import REFERENCE, causal_mask


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    q_offset: Tensor | None = None,
    k_offset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    mask, causal = _hidden(query, key, mask, causal, q_offset, k_offset)
    out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
        query, key, value, 0.0, causal, attn_mask=mask, scale=scale
    )
    if mask is None or k_offset is None:
        return out, logsumexp
    sees_no_key = mask.amax(-1) == float("-inf")  # the kernel's results for such a query are not specified
    return torch.where(sees_no_key.unsqueeze(-1), 0.0, out), torch.where(sees_no_key, float("-inf"), logsumexp)


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
    q_offset: Tensor | None = None,
    k_offset: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    mask, causal = _hidden(query, key, mask, causal, q_offset, k_offset)
    if k_offset is not None:  # a query that sees no key: exp(-inf - 0) is 0
        logsumexp = torch.where(logsumexp == float("-inf"), 0.0, logsumexp)
    grad_query, grad_key, grad_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default(
        grad, query, key, value, out, logsumexp, 0.0, causal, attn_mask=mask, scale=scale
    )
    return grad_query, grad_key, grad_value


def _hidden(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    causal: bool,
    q_offset: Tensor | None,
    k_offset: Tensor | None,
) -> tuple[Tensor | None, bool]:
    """The mask and the flag `causal` of torch's kernel, which counts positions from 0: offsets need a mask."""
    if not causal or (q_offset is None and k_offset is None):
        return mask, causal
    return causal_mask(query, key, mask, q_offset, k_offset), False


EXPANSIONS: dict[str, Callable[..., Tensor | tuple[Tensor | None, ...]]] = {
    **REFERENCE,
    "nn.attention": _attention,
    "nn.attention_backward": _attention_backward,
}
"""The function that `lower-idioms` expands each nn operation to."""
