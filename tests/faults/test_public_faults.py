"""Silent errors that were reported of other systems are found by `verify`'s check, which names what is wrong."""

from __future__ import annotations

import pytest
from stretto.driver.check.pass_check import CheckOptions, PassChecker

from .corpus import compiled
from .public_faults import PUBLIC_FAULTS


@pytest.mark.parametrize("name", PUBLIC_FAULTS)
def test_an_error_that_was_reported_of_another_system_is_found_and_named(name: str) -> None:
    fault = PUBLIC_FAULTS[name]
    checker = PassChecker(compiled(fault.case).module(fault.level), CheckOptions())
    assert checker.verdict_on("as compiled").equal
    fault.plant(checker.module)
    verdict = checker.verdict_on(name)
    assert verdict.breakage is not None
    assert any(fault.named in line for line in verdict.lines), verdict.lines


def test_at_least_fourteen_errors_with_their_sources_are_planted() -> None:
    assert len({fault.source for fault in PUBLIC_FAULTS.values()}) >= 14
