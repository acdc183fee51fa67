"""Stretto's own sharding rules, by op: for ops that DTensor does not cover, or covers for another purpose.

Most pointwise ops and matrix products are DTensor's; `extra_strategies` adds the partial-sum strategies that it omits.
"""

from __future__ import annotations

from . import (
    attention,
    experts,
    factories,
    images,
    indexing,
    pointwise,
    reductions,
    statistics,
    transformer,
    views,
)
from .builders import Rule, linear
from .call import Call
from .strategy import Strategy

TABLE: dict[str, Rule] = {
    **views.TABLE,
    **factories.TABLE,
    **reductions.TABLE,
    **indexing.TABLE,
    **transformer.TABLE,
    **attention.TABLE,
    **experts.TABLE,
    **pointwise.TABLE,
    **images.TABLE,
    **statistics.TABLE,
}
"""The sharding rule of each op; ops that are not here are looked up in DTensor."""

_LINEAR_OPERANDS: dict[str, tuple[str, ...]] = {
    "aten.where.self": ("self", "other"),
    "aten.silu_backward.default": ("grad_output",),
    "aten.gelu_backward.default": ("grad_output",),
    "aten.tanh_backward.default": ("grad_output",),
    "aten.sigmoid_backward.default": ("grad_output",),
    "aten.threshold_backward.default": ("grad_output",),
}


def extra_strategies(call: Call) -> list[Strategy]:
    """Strategies to add to DTensor's: the operands in which a pointwise op is linear may together be partial sums."""
    operands = _LINEAR_OPERANDS.get(call.op, ())
    if call.op in ("aten.masked_fill.Scalar",) and call.operands["value"] == 0:
        operands = ("self",)
    return [linear(call, *operands)] if operands else []
