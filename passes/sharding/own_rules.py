"""Our own table of rules, by op: what DTensor's strategies lack, or answer for another purpose.

Pointwise ops and matrix products are DTensor's; `also` adds the partial sums that they let through and DTensor omits.
"""

from __future__ import annotations

from . import (
    block_rules,
    factory_rules,
    grouped_rules,
    image_rules,
    index_rules,
    more_rules,
    random_rules,
    reduction_rules,
    statistics_rules,
    view_rules,
)
from .building import Rule, linear
from .call import Call
from .row import Row

TABLE: dict[str, Rule] = {
    **view_rules.TABLE,
    **factory_rules.TABLE,
    **reduction_rules.TABLE,
    **index_rules.TABLE,
    **block_rules.TABLE,
    **random_rules.TABLE,
    **grouped_rules.TABLE,
    **more_rules.TABLE,
    **image_rules.TABLE,
    **statistics_rules.TABLE,
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
