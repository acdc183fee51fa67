"""Our own table of rules, by op: what DTensor's strategies lack, or answer for another purpose.

Pointwise ops and matrix products are DTensor's; `also` adds the partial sums that they let through and DTensor omits.
"""

from __future__ import annotations

from . import block, factories, images, indexing, pointwise, reductions, statistics, views
from .builders import Rule, linear
from .call import Call
from .strategy import Row

TABLE: dict[str, Rule] = {
    **views.TABLE,
    **factories.TABLE,
    **reductions.TABLE,
    **indexing.TABLE,
    **block.TABLE,
    **pointwise.TABLE,
    **images.TABLE,
    **statistics.TABLE,
}
"""The rule of each op that we answer ourselves."""

_LINEAR_OPERANDS: dict[str, tuple[str, ...]] = {
    "aten.where.self": ("self", "other"),
    "aten.silu_backward.default": ("grad_output",),
    "aten.gelu_backward.default": ("grad_output",),
    "aten.tanh_backward.default": ("grad_output",),
    "aten.sigmoid_backward.default": ("grad_output",),
    "aten.threshold_backward.default": ("grad_output",),
}


def also(call: Call) -> list[Row]:
    """Rows to add to DTensor's: the operands in which a pointwise op is linear may together be partial sums."""
    operands = _LINEAR_OPERANDS.get(call.op, ())
    if call.op in ("aten.masked_fill.Scalar",) and call.operands["value"] == 0:
        operands = ("self",)
    return [linear(call, *operands)] if operands else []
