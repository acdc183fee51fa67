"""The dims that a reshape merges and splits, as the finest groups of equal products."""

from __future__ import annotations

from math import prod

Group = tuple[tuple[int, ...], tuple[int, ...]]


def dim_groups(before: tuple[int, ...], after: tuple[int, ...]) -> list[Group]:
    """The finest split of a reshape into groups of dims (of `before`, of `after`) with equal products; without 1s.

    >>> dim_groups((2, 6, 12), (12, 3, 4))
    [((0, 1), (0,)), ((2,), (1, 2))]
    """
    left = [d for d, n in enumerate(before) if n != 1]
    right = [d for d, n in enumerate(after) if n != 1]
    groups: list[Group] = []
    while left and right:
        before_dims, after_dims = [left.pop(0)], [right.pop(0)]
        while (before_product := prod(before[d] for d in before_dims)) != (
            after_product := prod(after[d] for d in after_dims)
        ):
            grow, rest = (before_dims, left) if before_product < after_product else (after_dims, right)
            if not rest:
                return groups
            grow.append(rest.pop(0))
        groups.append((tuple(before_dims), tuple(after_dims)))
    return groups
