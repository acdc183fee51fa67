"""Rules of products in groups: rows that lie one group after another, each multiplied by its group's matrix.

Shapes: input (rows, in), weight (groups, in, out), offsets (groups), result (rows, out). Rows stay whole: where a group
ends is said for all of them.
"""

from __future__ import annotations

from .building import P, Rule, linear, row
from .call import Call
from .row import Row


def grouped_mm(call: Call) -> list[Row]:
    """grouped_mm(input, weight, offs) -> result: by output features, by input features (a partial sum)."""
    rows = [row([1], [None, 2, None]), row([P], [1, 1, None])]
    return [*rows, linear(call, "input"), linear(call, "weight")]


def grouped_mm_backward(call: Call) -> list[Row]:
    """grouped_mm_backward(input, weight, offs, grad_output) -> (input's, weight's gradient): linear in grad_output."""
    rows = [row([P, 2], [None, 2, None, 1]), row([1, 1], [1, 1, None, None])]
    return [*rows, linear(call, "grad_output")]


TABLE: dict[str, Rule] = {
    "transformers.grouped_mm_fallback.default": grouped_mm,
    "transformers.grouped_mm_fallback_backward.default": grouped_mm_backward,
}
