"""Which ops a trace takes apart, where torch has functions in Python that write an op as simpler ones.

Kept whole are the ops of resampling, whose functions gather by computed indices that say no window: where an image is
cut, a rank must know what of its neighbours an output reads, and the op says so by its sizes. A trace with symbols for
sizes takes them apart as ever: the ops take numbers, and would fix the symbols.

torch's functions for a few other ops give other values, shapes or gradients than the ops themselves. Of these,
`hardshrink` is kept whole, and the losses with a margin are taken apart by functions of this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._ops import OpOverload

_RESAMPLING = (
    *(f"upsample_{kind}" for kind in ("linear1d", "bilinear2d", "trilinear3d", "bicubic2d")),
    *(f"{name}{dims}d" for name in ("upsample_nearest", "_upsample_nearest_exact") for dims in (1, 2, 3)),
)
_KEYS = (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd)
"""Where torch puts its functions for tracing."""
_MEAN, _SUM = 1, 2
"""torch's numbers of reductions."""


@contextmanager
def decompositions(symbols: bool) -> Iterator[None]:
    """Inside, a trace takes ops apart as this file says; with `symbols` for sizes, resampling as torch does."""
    kept = [torch.ops.aten.hardshrink.default, *(() if symbols else _resampling())]
    functions: Mapping[OpOverload, Callable[..., Any]] = {
        torch.ops.aten.multi_margin_loss.default: _multi_margin_loss,
        torch.ops.aten.multilabel_margin_loss_forward.default: _multilabel_margin_loss,
    }
    changed = [*kept, *functions]
    before = {op: {key: op.py_kernels[key] for key in _KEYS if key in op.py_kernels} for op in changed}
    for op, kernels in before.items():
        for key in kernels:
            del op.py_kernels[key]
        if op in functions:
            op.py_kernels[DispatchKey.Autograd] = functions[op]
        op._dispatch_cache.clear()
    try:
        yield
    finally:
        for op, kernels in before.items():
            op.py_kernels.pop(DispatchKey.Autograd, None)
            op.py_kernels.update(kernels)
            op._dispatch_cache.clear()


def has_symbols(tensors: Sequence[Tensor]) -> bool:
    """Whether a size of some tensor is a symbol."""
    return any(isinstance(extent, torch.SymInt) for tensor in tensors for extent in tensor.shape)


def _resampling() -> list[OpOverload]:
    packets = [getattr(torch.ops.aten, name) for name in _RESAMPLING]
    return [getattr(packet, overload) for packet in packets for overload in ("default", "vec")]


def _multi_margin_loss(
    x: Tensor, target: Tensor, p: float = 1, margin: float = 1, weight: Tensor | None = None, reduction: int = _MEAN
) -> Tensor:
    """What `aten.multi_margin_loss` gives; an excess of exactly 0 has no gradient, a single row a scalar."""
    rows, labels = x.reshape(-1, x.shape[-1]), target.reshape(-1, 1)
    classes = torch.arange(rows.shape[1], device=x.device)
    excess = margin - rows.gather(1, labels) + rows
    excess = torch.where((excess > 0) & (classes != labels), excess, 0)
    excess = excess if p == 1 else excess * excess
    excess = excess if weight is None else excess * weight[labels]
    return _reduced(excess.sum(1) / rows.shape[1], reduction, x)


def _multilabel_margin_loss(x: Tensor, target: Tensor, reduction: int) -> tuple[Tensor, Tensor]:
    """What `aten.multilabel_margin_loss_forward` gives: a row's labels end at its first -1."""
    rows, labels = (y.reshape(-1, y.shape[-1]) for y in (x, target))
    classes = torch.arange(rows.shape[1], device=x.device)
    is_label = (labels == -1).to(torch.int64).cumsum(1) == 0
    known = torch.where(is_label, labels, 0)
    of_row = (is_label.unsqueeze(2) & (known.unsqueeze(2) == classes)).any(1)
    excess = 1 - rows.gather(1, known).unsqueeze(2) + rows.unsqueeze(1)
    counted = is_label.unsqueeze(2) & ~of_row.unsqueeze(1) & (excess > 0)
    loss = torch.where(counted, excess, 0).sum((1, 2)) / rows.shape[1]
    return _reduced(loss, reduction, x), of_row.to(x.dtype).reshape(target.shape)


def _reduced(loss_of_rows: Tensor, reduction: int, x: Tensor) -> Tensor:
    if reduction == _MEAN:
        return loss_of_rows.mean()
    return loss_of_rows.sum() if reduction == _SUM else loss_of_rows.reshape(x.shape[:-1])
