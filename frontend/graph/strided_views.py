"""Rewrite tensors of special memory that torch's derivatives and decompositions make: strided views, symbolic zeros.

Before                                              After
  %y = as_strided(%x, [2, 5, 1, 1], [5, 1, 5, 5])     %y = reshape(%x, [2, 5, 1, 1])

An example is global pooling of channels-last images. A forward that uses strides itself is refused: its result depends
on the memory layout of its inputs, which may differ from call to call.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import fx

from ..captured import CaptureError
from ..metadata import source_span

aten = torch.ops.aten
_STRIDED = (aten.as_strided.default, aten.as_strided_.default, aten.as_strided_scatter.default, aten.set_.source_Tensor)


def refuse_strided_views(forward: fx.Graph) -> None:
    """Errors: E0230 for a view by strides in a forward before autograd."""
    for target in _STRIDED:
        for node in forward.find_nodes(op="call_function", target=target):
            raise CaptureError(
                "E0230",
                f'the forward uses "{target}", whose result depends on the memory layout of its operand',
                span=source_span(node),
                help="write this part of the model with reshape, permute, unfold or slices",
            )


def write_symbolic_zeros(joint: fx.Graph) -> None:
    """Rewrite the zeros without memory that derivatives of constants give (as of `sgn`) as plain zeros, in place."""
    for node in joint.find_nodes(op="call_function", target=aten._efficientzerotensor.default):
        node.target = aten.zeros.default


def write_as_reshapes(joint: fx.Graph) -> None:
    """Rewrite the views that keep all elements in order, in place. Nodes have their values in `meta["val"]`."""
    for node in joint.find_nodes(op="call_function", target=aten.as_strided.default):
        source, size, stride, *offset = node.args
        if _keeps_order(source, size, stride, offset):
            node.target, node.args = aten.reshape.default, (source, list(size))
    for node in joint.find_nodes(op="call_function", target=aten.as_strided_scatter.default):
        into, written, size, stride, *offset = node.args
        if _keeps_order(into, size, stride, offset):
            node.target, node.args = aten.reshape.default, (written, list(into.meta["val"].shape))


def _keeps_order(source: fx.Node, size: Sequence[int], stride: Sequence[int], offset: Sequence[int | None]) -> bool:
    """Whether the view has all elements of `source` once, in order."""
    value: torch.Tensor = source.meta["val"]
    begins = not offset or offset[0] is None or offset[0] == value.storage_offset()
    return (
        begins
        and prod(size) == value.numel()
        and _is_row_major(size, stride)
        and _is_row_major(value.shape, value.stride())
    )


def _is_row_major(size: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether strides are those of a contiguous tensor; the stride of an extent of 1 does not matter."""
    step = 1
    for extent, element_stride in zip(reversed(size), reversed(stride), strict=True):
        if extent != 1 and element_stride != step:
            return False
        step *= extent
    return step > 0
