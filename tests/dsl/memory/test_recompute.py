"""`recompute`: what the statement says."""

from __future__ import annotations

import pytest
from stretto.dsl import Plan, PlanCode, PlanError
from stretto.dsl.error import MemoryCode
from stretto.dsl.memory.recompute import Recompute

MESH = "mesh (dp=2)\n"


@pytest.mark.parametrize(
    "line",
    [
        'recompute "*.mlp", "layers.{0,1}"',
        "recompute attention",
        "recompute auto { memory 60GB  except attention }",
        'recompute "*.mlp", attention { except gelu, matmul  collectives again }',
    ],
)
def test_a_statement_prints_as_it_is_written(line: str) -> None:
    plan = Plan.parse(MESH + line)
    assert str(plan).splitlines()[-1] == line
    assert Plan.parse(str(plan)) == plan


def test_globs_and_kinds_may_stand_in_any_order_and_on_lines_of_their_own() -> None:
    plan = Plan.parse(f'{MESH}recompute attention,\n  "*.mlp" {{\n  collectives kept\n}}')
    assert plan.recomputed == (Recompute(("*.mlp",), ("attention",)),)
    [statement] = plan.recomputed
    assert str(statement.kind_span("attention")) == "<plan>:2:11" and str(statement.places.pattern(0)) == "<plan>:3:3"


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ('recompute "*.mlp" { keep gelu }', MemoryCode.BAD_RECOMPUTE, 'recompute has no item "keep"'),
        ("recompute gelu { collectives twice }", MemoryCode.BAD_RECOMPUTE, '"collectives" cannot be "twice"'),
        ("recompute gelu { collectives kept, again }", MemoryCode.BAD_RECOMPUTE, '"collectives" cannot be "again"'),
        ("recompute gelu { except a  except b }", MemoryCode.BAD_RECOMPUTE, 'recompute sets "except" twice'),
        ('recompute "a{"', PlanCode.BAD_PATTERN, 'the pattern "a{" cannot be read: a brace is unbalanced'),
        ("recompute auto", MemoryCode.BAD_RECOMPUTE, '"auto" needs the bytes that a rank may need'),
        ("recompute auto, gelu { memory 1GB }", MemoryCode.BAD_RECOMPUTE, "so it stands alone"),
        ("recompute gelu { memory 1GB }", MemoryCode.BAD_RECOMPUTE, '"memory" is for "auto"'),
        ("recompute auto { memory 60 }", MemoryCode.BAD_RECOMPUTE, '"memory" cannot be "60"'),
        ("recompute auto { memory 1GB }\npipeline over dp { microbatches 2 }", MemoryCode.BAD_RECOMPUTE, "pipeline"),
        ("recompute 3", PlanCode.SYNTAX, 'unexpected "3"'),
        ("recompute", PlanCode.SYNTAX, "the line ends too early"),
    ],
)
def test_what_does_not_exist_is_refused_at_its_place(line: str, code: PlanCode | MemoryCode, message: str) -> None:
    with pytest.raises(PlanError) as refused:
        Plan.parse(MESH + line)
    assert refused.value.code == code and message in refused.value.message
    assert refused.value.span is not None and refused.value.span.line == 2
