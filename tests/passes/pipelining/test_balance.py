"""Where a sequence of costs is cut."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stretto.passes.pipelining.balance import SLACK, balanced, largest

COSTS = st.lists(st.floats(0.0, 10.0), min_size=1, max_size=9)


def parts(costs: list[float], cuts: tuple[int, ...]) -> list[list[float]]:
    """The costs of each part."""
    return [costs[a:b] for a, b in pairwise((0, *cuts, len(costs)))]


@given(COSTS, st.data())
def test_the_largest_part_is_nearly_as_small_as_any_cut_makes_it(costs: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(costs)))
    cuts = balanced(costs, [0.0] * len(costs), count)
    least = min(largest(costs, others) for others in combinations(range(1, len(costs)), count - 1))
    assert len(cuts) == count - 1 and all(parts(costs, cuts))
    assert largest(costs, cuts) <= least * SLACK * (1 + 1e-5) + 1e-9


def test_of_equal_cuts_the_one_where_less_crosses_is_taken() -> None:
    costs = [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    assert balanced(costs, [0.0, 9.0, 5.0, 1.0, 5.0, 9.0], 2) == (3,)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_part_gets_something_even_where_most_costs_nothing(count: int) -> None:
    cuts = balanced([0.0, 0.0, 7.0], [0.0, 0.0, 0.0], count)
    assert all(parts([0.0, 0.0, 7.0], cuts))
