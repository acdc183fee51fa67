"""`split tokens` and `split batch`: what the statements say."""

from __future__ import annotations

import pytest
from stretto.dsl import Plan, PlanError
from stretto.dsl.error import MemoryCode
from stretto.dsl.memory.nanobatches import Nanobatches, OrderOfNanobatches

INTERLEAVE = OrderOfNanobatches.INTERLEAVE


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("split tokens into 2", Nanobatches("tokens", 2)),
        ("split batch into 3 { order sequence }", Nanobatches("batch", 3)),
        (
            'split tokens into 2 { order interleave  sizes 3, 5  from 1024  in "*.mlp", "layers.{0,1}" }',
            Nanobatches("tokens", 2, INTERLEAVE, (3, 5), 1024, ("*.mlp", "layers.{0,1}")),
        ),
    ],
)
def test_a_statement_prints_as_it_is_read(line: str, value: Nanobatches) -> None:
    plan = Plan.parse(f"mesh (dp=2)\nsplit loss into 4\n{line}")
    assert plan.nanobatches == value and Plan.parse(str(plan)) == plan and plan.split is not None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("split token into 2", '"token" cannot be split'),
        ("split tokens into 1", "the tokens cannot be split into 1"),
        ("split batch into 65", "the batch cannot be split into 65"),
        ("split tokens into 2 { order interleaved }", '"order" cannot be "interleaved"'),
        ("split tokens into 2 { sizes 1, 2, 3 }", '"sizes" are 1, 2 or 3 for 2 nanobatches'),
        ("split tokens into 2 { sizes 0, 2 }", '"sizes" are 0 or 2 for 2 nanobatches'),
        ("split tokens into 2 { sizes 1, many }", '"sizes" cannot be "many"'),
        ("split tokens into 2 { from 1, 2 }", '"from" cannot be "2"'),
        ("split tokens into 2 { from 1KB }", '"from" cannot be "1KB"'),
        ("split tokens into 2 { in layers }", '"in" cannot be "layers"'),
        ("split tokens into 2 { by op }", 'split has no item "by"'),
        ("split tokens into 2 { from 1  from 2 }", 'split sets "from" twice'),
        ("split loss into 2 { order sequence }", 'split loss has no item "order"'),
        ("split tokens into 2\nsplit batch into 2", 'the plan has a second "split batch"'),
    ],
)
def test_what_does_not_exist_is_refused_at_its_place(line: str, message: str) -> None:
    with pytest.raises(PlanError) as refused:
        Plan.parse("mesh (dp=2)\n" + line)
    assert refused.value.code == MemoryCode.BAD_SPLIT and message in refused.value.message
    assert refused.value.span is not None


def test_a_bad_pattern_is_refused_at_its_place() -> None:
    with pytest.raises(PlanError) as refused:
        Plan.parse('mesh (dp=2)\nsplit tokens into 2 { in "*.mlp", "[" }')
    assert refused.value.code == "E0113" and refused.value.span is not None and refused.value.span.column == 35
