"""Silent errors that were reported of other systems are found by `verify`'s check, which names what is wrong."""

from __future__ import annotations

from functools import cache

import pytest
from stretto.driver.check.pass_check import CheckOptions, PassChecker

from ..subsets import only
from .corpus import Case, compiled
from .public_faults import PUBLIC_FAULTS


@cache
def assert_right_as_compiled(case: Case, level: str) -> None:
    """Once for all faults that are planted in a module."""
    checker = PassChecker(compiled(case).module(level), CheckOptions())
    assert checker.verdict_on("as compiled").equal


LIKE_OTHERS = (
    "norm inside a block under sequence parallelism", "gradient of a row-parallel bias divided by the ranks",
    "accumulated gradients divided at every step", "tied weight reduced twice",
)  # fmt: skip
"""Faults that are planted as others are, at another place: not part of the default run."""


@pytest.mark.parametrize("name", only([name for name in PUBLIC_FAULTS if name not in LIKE_OTHERS], PUBLIC_FAULTS))
def test_an_error_that_was_reported_of_another_system_is_found_and_named(name: str) -> None:
    fault = PUBLIC_FAULTS[name]
    assert_right_as_compiled(fault.case, fault.level)
    checker = PassChecker(compiled(fault.case).module(fault.level), CheckOptions())
    fault.plant(checker.module)
    verdict = checker.verdict_on(name)
    assert verdict.breakage is not None
    assert any(fault.named in line for line in verdict.lines), verdict.lines


def test_at_least_fourteen_errors_with_their_sources_are_planted() -> None:
    assert len({fault.source for fault in PUBLIC_FAULTS.values()}) >= 14
