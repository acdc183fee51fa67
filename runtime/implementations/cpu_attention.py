"""Attention on a CPU by torch's flash kernel, forward and backward.

The kernel counts the positions of `causal` from 0, and does not say what a query gets that sees no key. Where there are
offsets it is given a mask, and such queries get what the kind says: out 0 and log-sum-exp -inf.
"""

from __future__ import annotations

from functools import partial
from math import prod

import torch
from torch import Tensor

from ..program.arguments import DTYPES
from ..program.ops import torch_op
from .registry import Implementation, Kernel, KindFunction

_FORWARD = torch_op("aten._scaled_dot_product_flash_attention_for_cpu.default").call
_BACKWARD = torch_op("aten._scaled_dot_product_flash_attention_for_cpu_backward.default").call
_NEEDED = {
    "attention": frozenset({"query", "key", "value"}),
    "attention_backward": frozenset({"grad", "query", "key", "value", "out", "logsumexp"}),
}
_OPTIONAL = frozenset({"mask", "q_offset", "k_offset"})
_FLOATS = frozenset({"float64", "float32", "bfloat16", "float16"})


def _build(function: KindFunction, target: str) -> Kernel | None:
    """The kernel; None for operands that torch's does not take."""
    kind, needed = function.kind, _NEEDED[function.kind.name]
    names = kind.operands
    if not needed <= {*names} <= needed | _OPTIONAL or not kind.attributes.keys() <= {"causal", "scale"}:
        return None
    tensors = dict(zip(names, function.operands, strict=True))
    dtypes = {each.dtype for name, each in tensors.items() if name in needed - {"logsumexp"}}
    if len(dtypes) != 1 or not dtypes <= _FLOATS or any(len(tensors[name].shape) != 4 for name in ("query", "key")):
        return None
    if "mask" in tensors and tensors["mask"].dtype == "bool":
        return None  # torch's kernel hides by it, the kind adds it
    causal, scale = bool(kind.attributes.get("causal", False)), kind.attributes.get("scale")
    if not isinstance(scale, float | int | None):
        return None
    call = _BACKWARD if kind.name == "attention_backward" else _FORWARD
    if not _OPTIONAL & {*names}:
        return lambda *given: call(*given, 0.0, causal, scale=scale)
    return partial(_backward if kind.name == "attention_backward" else _forward, names, causal, scale)


def _forward(names: tuple[str, ...], causal: bool, scale: float | None, *given: Tensor) -> tuple[Tensor, Tensor]:
    tensors = dict(zip(names, given, strict=True))
    mask, flag = _hidden(tensors, causal)
    query, key, value = (tensors[name] for name in ("query", "key", "value"))
    out, logsumexp = _FORWARD(query, key, value, 0.0, flag, attn_mask=mask, scale=scale)
    if mask is None or "k_offset" not in tensors:
        return out, logsumexp
    sees_no_key = mask.amax(-1) == float("-inf")
    out = torch.where(sees_no_key.unsqueeze(-1), 0.0, out)
    return out, torch.where(sees_no_key, float("-inf"), logsumexp)


def _backward(
    names: tuple[str, ...], causal: bool, scale: float | None, *given: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = dict(zip(names, given, strict=True))
    mask, flag = _hidden(tensors, causal)
    if "k_offset" in tensors:  # a query that sees no key: exp(-inf - 0) is 0
        logsumexp = tensors["logsumexp"]
        tensors["logsumexp"] = torch.where(logsumexp == float("-inf"), 0.0, logsumexp)
    operands = (tensors[name] for name in ("grad", "query", "key", "value", "out", "logsumexp"))
    gradients: tuple[Tensor, Tensor, Tensor] = _BACKWARD(*operands, 0.0, flag, attn_mask=mask, scale=scale)
    return gradients


def _hidden(tensors: dict[str, Tensor], causal: bool) -> tuple[Tensor | None, bool]:
    """The mask and the flag `causal` for torch's kernel: with offsets a mask says what is hidden."""
    query, key, mask = tensors["query"], tensors["key"], tensors.get("mask")
    if not causal or not {"q_offset", "k_offset"} & tensors.keys():
        return mask, causal
    queries = torch.arange(query.shape[-2], device=query.device) + tensors.get("q_offset", 0)
    keys = torch.arange(key.shape[-2], device=query.device) + tensors.get("k_offset", 0)
    visible = torch.zeros((), dtype=query.dtype, device=query.device) if mask is None else mask
    return torch.where(keys > queries.unsqueeze(-1), float("-inf"), visible), False


def _workspace(function: KindFunction, target: str) -> int:
    """The bytes of the mask that offsets need, and of results before what queries without a key get is put in."""
    kind = function.kind
    if not kind.attributes.get("causal", False) or not {"q_offset", "k_offset"} & {*kind.operands}:
        return 0
    tensors = dict(zip(kind.operands, function.operands, strict=True))
    query, mask = tensors["query"], tensors.get("mask")
    rows, columns = query.shape[-2], tensors["key"].shape[-2]
    given = () if mask is None else mask.shape
    shape = [max(pair) for pair in zip((1, 1, rows, columns), (*[1] * (4 - len(given)), *given), strict=True)]
    itemsize = DTYPES[query.dtype if mask is None else mask.dtype].itemsize
    masked = prod(shape) * itemsize
    building = rows * columns + 2 * 8 * (rows + columns)
    changed = function.results if kind.name == "attention" else (tensors["logsumexp"],)
    replacing = sum(each.bytes for each in changed) + prod(shape[:-1]) * (itemsize + 1) + prod(query.shape[:-1])
    return masked + max(building, replacing if "k_offset" in tensors else 0)


FORWARD = Implementation("torch's flash attention", ("attention",), ("cpu",), _build, _workspace)
BACKWARD = Implementation("torch's flash attention", ("attention_backward",), ("cpu",), _build, _workspace)
