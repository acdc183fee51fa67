"""Faults of the source: each says which function does what wrong; some check sees it, and `bisect` says where.

The default run tries a few, `pytest -m slow` all of them.
"""

from __future__ import annotations

import pytest

from .checking import found
from .faults import LOWERING, SourceFault
from .in_lowering import IN_LOWERING
from .in_passes import IN_PASSES
from .in_rules import IN_RULES

FAULTS = (*IN_PASSES, *IN_RULES, *IN_LOWERING)
QUICK = (
    "a mean divides by one more", "a batch norm counts its own rows", "a softmax is cut by classes",
    "a quotient has twice the divisor",
)  # fmt: skip
"""Those of the default run."""
INEXACT = {
    "two ranks own one class": "flags of each rank's own indices are integers that no other module computes",
    "every rank owns all classes": "flags of each rank's own indices are integers that no other module computes",
    "a rank cuts the chunk of another": "the first tensor that is rolled holds the same everywhere",
    "an embedding's gradient is complete": "its rows with one more for other ranks' indices are no value of before",
    "padding of a sum holds ones": "the mask's padding is wrong, which is no part of its value",
    "a loss's gradient keeps ignored rows": "the run stops before all ranks have the value that is wrong",
}
"""Faults for which `bisect` names a later operation, and why."""


def test_there_are_at_least_40_faults_and_few_are_not_located() -> None:
    assert len({fault.what for fault in FAULTS}) == len(FAULTS) >= 40
    assert len(INEXACT) <= 0.1 * len(FAULTS)
    assert {*QUICK, *INEXACT} <= {fault.what for fault in FAULTS}


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_what_a_fault_replaces_is_where_it_says(fault: SourceFault, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a change of names shows in the default run, which tries few of them."""
    fault.plant(monkeypatch)


def check(fault: SourceFault) -> None:
    result = found(fault)
    assert result.is_found
    broken = result.bisection.pass_name
    assert broken == (LOWERING if fault.first == LOWERING else fault.steps[1])
    if fault.what not in INEXACT:
        assert result.is_exact, (result.named, result.expected)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.what in QUICK], ids=str)
def test_a_fault_of_the_source_is_seen_and_its_operation_is_named(fault: SourceFault) -> None:
    check(fault)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.what not in QUICK], ids=str)
def test_every_fault_of_the_source_is_seen_and_its_operation_is_named(fault: SourceFault) -> None:
    check(fault)
