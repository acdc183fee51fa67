"""`split`: what the statement says."""

from __future__ import annotations

import pytest
from stretto.dsl import Plan, PlanError
from stretto.dsl.error import MemoryCode
from stretto.dsl.memory.split import Split


def test_a_statement_prints_as_it_is_written() -> None:
    plan = Plan.parse("mesh (dp=2)\nsplit loss into 8")
    assert plan.split == Split("loss", 8) and Plan.parse(str(plan)) == plan


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("split los into 8", '"los" cannot be split'),
        ("split loss into 1", "a loss cannot be computed in 1 chunks"),
        ("split loss into 5000", "a loss cannot be computed in 5000 chunks"),
        ("split loss into 2\nsplit loss into 4", 'the plan has a second "split loss"'),
    ],
)
def test_what_does_not_exist_is_refused_at_its_place(line: str, message: str) -> None:
    with pytest.raises(PlanError) as refused:
        Plan.parse("mesh (dp=2)\n" + line)
    assert refused.value.code == MemoryCode.BAD_SPLIT and message in refused.value.message
    assert refused.value.span is not None
