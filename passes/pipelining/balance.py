"""Cut a sequence into contiguous parts of balanced cost, with few bytes across the cuts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

SLACK = 1.05
"""By how much the largest part may exceed its minimum, for cuts that are better otherwise."""


def balanced(costs: Sequence[float], crossing: Sequence[float], parts: int) -> tuple[int, ...]:
    """The cuts, as the index of the first item of each part but the first; no part is empty.

    `crossing[i]` is what crosses a cut before item i, in the unit of the costs. Needs `parts` <= len(costs). The
    largest part's cost is at most `SLACK` times the smallest possible. Among such cuts the result minimises the sum of
    squared part costs plus crossing costs, both relative to the mean part.

    >>> balanced([1, 1, 1, 1], [0, 1, 1, 1], 2)
    (2,)
    """
    total = [0.0, *accumulate(costs)]
    mean = total[-1] / parts or 1.0
    bound = _smallest_bound(costs, parts) * SLACK
    count = len(costs)
    least_before: list[float | None] = [0.0, *([None] * count)]
    part_starts: list[list[int]] = []
    for part in range(parts):
        least: list[float | None] = [None] * (count + 1)
        starts = [0] * (count + 1)
        for end in range(part + 1, count + 1 - (parts - 1 - part)):
            for start in range(end - 1, -1, -1):
                size = total[end] - total[start]
                if size > bound and start < end - 1:
                    break
                before = least_before[start]
                if before is None or size > bound:
                    continue
                value = before + (size / mean) ** 2 + (crossing[start] / mean if start else 0.0)
                least_here = least[end]
                if least_here is None or value < least_here:
                    least[end], starts[end] = value, start
        least_before = least
        part_starts.append(starts)
    cuts, end = [], count
    for starts in reversed(part_starts[1:]):
        end = starts[end]
        cuts.append(end)
    return tuple(reversed(cuts))


def largest(costs: Sequence[float], cuts: Sequence[int]) -> float:
    """The cost of the largest part."""
    return max(sum(costs[a:b]) for a, b in pairwise((0, *cuts, len(costs))))


def _smallest_bound(costs: Sequence[float], parts: int) -> float:
    """The smallest cost of the largest part (to a millionth), by bisection with first fit."""
    low, high = max(costs), sum(costs)
    if _parts_needed(costs, low) <= parts:
        return low
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        if not low < middle < high:
            break
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
