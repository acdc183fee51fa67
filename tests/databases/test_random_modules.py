"""A thousand random modules under random plans, in two regimes of values: none wrong, none crashes, few refused."""

from __future__ import annotations

import pytest

from .against_eager import Outcome, Verdict, outcome
from .random_modules import random_case
from .test_torch_databases import report

PARTS, EACH = 20, 50
MOST_REFUSED = 0.05


def outcomes(seeds: range) -> list[Outcome]:
    """What becomes of the cases of some seeds."""
    return [outcome(case.name, case.make, case.batches, case.plan) for case in map(random_case, seeds)]


@pytest.mark.parametrize("part", [pytest.param(part, marks=pytest.mark.slow) for part in range(PARTS)])
@pytest.mark.timeout(3000)
def test_random_modules_are_right(part: int) -> None:
    results = outcomes(range(part * EACH, (part + 1) * EACH))
    report(results, f"random modules, part {part}")
    assert not [str(each) for each in results if each.is_fault]
    assert sum(each.verdict is Verdict.REFUSED for each in results) <= 2 * MOST_REFUSED * EACH


def test_a_few_random_modules_are_right() -> None:
    results = outcomes(range(-8, 0))
    assert not [str(each) for each in results if each.is_fault]
    assert sum(each.verdict is Verdict.EQUAL for each in results) >= 6
