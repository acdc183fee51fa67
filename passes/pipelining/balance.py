"""Cutting a sequence into contiguous parts: the largest part as small as can be, then the least crossing the cuts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

SLACK = 1.05
"""How much larger than need be the largest part may become for cuts where less crosses."""


def balanced(costs: Sequence[float], crossing: Sequence[float], parts: int) -> tuple[int, ...]:
    """Where to cut, as the index of the first item of each part but the first; no part is empty.

    `crossing[i]` is what crosses a cut before item i. Needs `parts` <= len(costs). The largest part's cost is at most
    `SLACK` times the smallest possible; among such cuts those with the least sum of `crossing` are taken, of which
    those with the smallest sum of squared costs.

    >>> balanced([1, 1, 1, 1], [0, 1, 1, 1], 2)
    (2,)
    """
    total = [0.0, *accumulate(costs)]
    bound = _smallest_bound(costs, parts) * SLACK
    count = len(costs)
    best: list[tuple[float, float] | None] = [(0.0, 0.0), *([None] * count)]
    froms: list[list[int]] = []
    for part in range(parts):
        row: list[tuple[float, float] | None] = [None] * (count + 1)
        made = [0] * (count + 1)
        for end in range(part + 1, count + 1 - (parts - 1 - part)):
            for start in range(end - 1, -1, -1):
                size = total[end] - total[start]
                if size > bound and start < end - 1:
                    break
                before = best[start]
                if before is None or size > bound:
                    continue
                key = (before[0] + (crossing[start] if start else 0.0), before[1] + size * size)
                known = row[end]
                if known is None or key < known:
                    row[end], made[end] = key, start
        best = row
        froms.append(made)
    cuts, end = [], count
    for made in reversed(froms[1:]):
        end = made[end]
        cuts.append(end)
    return tuple(reversed(cuts))


def largest(costs: Sequence[float], cuts: Sequence[int]) -> float:
    """The cost of the largest part."""
    return max(sum(costs[a:b]) for a, b in pairwise((0, *cuts, len(costs))))


def _smallest_bound(costs: Sequence[float], parts: int) -> float:
    """The smallest cost of the largest part (to a millionth), by bisection over what first fit can do."""
    low, high = max(costs), sum(costs)
    if _parts_needed(costs, low) <= parts:
        return low
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        if _parts_needed(costs, middle) <= parts:
            high = middle
        else:
            low = middle
    return high


def _parts_needed(costs: Sequence[float], bound: float) -> int:
    """How many parts first fit needs where none may cost more than `bound`."""
    parts, size = 1, 0.0
    for cost in costs:
        if size + cost > bound:
            parts, size = parts + 1, cost
        else:
            size += cost
    return parts
