"""The meaning of the nn ops for the checks: their own reference, with query heads that share key heads added."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stretto.passes.normalize.idioms.reference import REFERENCE
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """nn.attention with each key head repeated for the query heads that share it."""
    group = q.shape[1] // k.shape[1]
    return _tensors(REFERENCE["nn.attention"](q, _repeated(k, group), _repeated(v, group), *rest))


def attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """nn.attention_backward; the gradient of a shared head is the sum over those that share it."""
    group = q.shape[1] // k.shape[1]
    wide = REFERENCE["nn.attention_backward"](grad, q, _repeated(k, group), _repeated(v, group), *rest)
    dq, dk, dv = _tensors(wide)
    shape = (k.shape[0], k.shape[1], group, *k.shape[2:])
    return dq, dk.reshape(shape).sum(2), dv.reshape(shape).sum(2)


def _repeated(heads: Tensor, group: int) -> Tensor:
    wide: Tensor = heads.repeat_interleave(group, dim=1)
    return wide


def _tensors(results: Tensor | tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    return tuple(result for result in results if result is not None)


OPS: dict[str, Callable[..., Any]] = {
    **REFERENCE,
    "nn.attention": attention,
    "nn.attention_backward": attention_backward,
}
