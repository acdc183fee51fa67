"""Rules of products by expert: by rows, by features, and by experts, where rows go to the ranks of their experts.

A row is padding where its expert is -1; it adds nothing to sums.
"""

from __future__ import annotations

from .builders import P, Rule, linear, strategy
from .call import Call
from .strategy import Lowering, Strategy

_NO_EXPERT = -1.0
"""What the expert of a row is that is padding."""
_FILLS = (None, None, _NO_EXPERT, None)


def expert_linear(call: Call) -> list[Strategy]:
    """nn.expert_linear(x (..., k), weight (E, k, n), experts (...)) -> (..., n).

    By rows; by rows and experts together, which exchanges rows; by k (a partial sum); by n. Linear in x, and in weight.
    """
    last = len(call.out().shape) - 1
    by_rows = [strategy([d], [d, None, d], fills=_FILLS[:3]) for d in range(last)]
    by_experts = [strategy([d], [d, 0, d], fills=_FILLS[:3], lowering=Lowering.EXCHANGE) for d in range(last)]
    by_features = [strategy([P], [last, 1, None]), strategy([last], [None, 2, None])]
    return [*by_experts, *by_rows, *by_features, linear(call, "x"), linear(call, "weight")]


def expert_outer_products(call: Call) -> list[Strategy]:
    """nn.expert_outer_products(a (..., m), b (..., n), experts (...), weight (E, m, n)) -> (E, m, n).

    By rows (a partial sum); by rows and experts together, which exchanges rows; by m; by n. Linear in a, and in b.
    Experts are cut as the weight is, whose gradient it is.
    """
    last = len(call.meta("a").shape) - 1
    by_rows = [strategy([P], [d, d, d, None], fills=_FILLS) for d in range(last)]
    by_experts = [strategy([0], [d, d, d, 0], fills=_FILLS, lowering=Lowering.EXCHANGE) for d in range(last)]
    by_features = [strategy([1], [last, None, None, 1]), strategy([2], [None, last, None, 2])]
    return [*by_rows, *by_experts, *by_features, linear(call, "a"), linear(call, "b")]


def kept_experts(call: Call) -> list[Strategy]:
    """nn.kept_experts(experts (...)) -> (...): whole, because which rows are kept depends on all rows before them."""
    return []


TABLE: dict[str, Rule] = {
    "nn.expert_linear": expert_linear,
    "nn.expert_outer_products": expert_outer_products,
    "nn.kept_experts": kept_experts,
}
