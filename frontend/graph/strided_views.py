"""Views by strides that torch's own derivatives and decompositions make: where they only reshape, they are written so.

Before                                              After
  %y = as_strided(%x, [2, 5, 1, 1], [5, 1, 5, 5])     %y = reshape(%x, [2, 5, 1, 1])

Global pooling of channels-last images makes them. A forward that asks for strides itself is refused: what it computes
depends on how its inputs lie in memory, which two calls of one program may differ in.
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
                f'the forward uses "{target}", whose result depends on how its operand lies in memory',
                span=source_span(node),
                help="write this part of the model with reshape, permute, unfold or slices",
            )


def write_as_reshapes(joint: fx.Graph) -> None:
    """Replace those that keep the order of elements, in place. Nodes have their values' shapes in `meta["val"]`."""
    for node in joint.find_nodes(op="call_function", target=aten.as_strided.default):
        source, size, stride, *offset = node.args
        if _keeps_order(source, size, stride, offset):
            node.target, node.args = aten.reshape.default, (source, list(size))
    for node in joint.find_nodes(op="call_function", target=aten.as_strided_scatter.default):
        into, written, size, stride, *offset = node.args
        if _keeps_order(into, size, stride, offset):
            node.target, node.args = aten.reshape.default, (written, list(into.meta["val"].shape))


def _keeps_order(source: fx.Node, size: Sequence[int], stride: Sequence[int], offset: Sequence[int | None]) -> bool:
    """Whether the view takes all elements of `source`, each once, in their order."""
    value: torch.Tensor = source.meta["val"]
    begins = not offset or offset[0] is None or offset[0] == value.storage_offset()
    return (
        begins
        and prod(size) == value.numel()
        and _is_row_major(size, stride)
        and _is_row_major(value.shape, value.stride())
    )


def _is_row_major(size: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether elements lie one after another in the order of their indices; a stride of extent 1 means nothing."""
    step = 1
    for extent, each in zip(reversed(size), reversed(stride), strict=True):
        if extent != 1 and each != step:
            return False
        step *= extent
    return step > 0
