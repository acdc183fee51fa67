"""Trace resampling as torch's own ops: its decompositions into gathers by computed indices say no window.

Where an image is cut, a rank must know what of its neighbours an output reads. The op says so by its sizes. A trace
with symbols for sizes is decomposed as ever: torch's own ops take numbers, and would fix the symbols.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch._C import DispatchKey
from torch._ops import OpOverload

_NAMES = (
    *(f"upsample_{kind}" for kind in ("linear1d", "bilinear2d", "trilinear3d", "bicubic2d")),
    *(f"{name}{dims}d" for name in ("upsample_nearest", "_upsample_nearest_exact") for dims in (1, 2, 3)),
)
_KEYS = (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd)
"""Where torch puts its decompositions for tracing."""


@contextmanager
def resampling_kept() -> Iterator[None]:
    """Inside, a trace has these ops, and their backward, in place of torch's decompositions."""
    removed = {op: {key: op.py_kernels[key] for key in _KEYS if key in op.py_kernels} for op in _ops()}
    for op, kernels in removed.items():
        for key in kernels:
            del op.py_kernels[key]
        op._dispatch_cache.clear()
    try:
        yield
    finally:
        for op, kernels in removed.items():
            op.py_kernels.update(kernels)
            op._dispatch_cache.clear()


def has_symbols(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether a size of some tensor is a symbol."""
    return any(isinstance(extent, torch.SymInt) for tensor in tensors for extent in tensor.shape)


def _ops() -> list[OpOverload]:
    packets = [getattr(torch.ops.aten, name) for name in _NAMES]
    return [getattr(packet, overload) for packet in packets for overload in ("default", "vec")]
