"""The statements about a pipeline: what they say, print, and refuse."""

import pytest
from stretto.dsl import Balance, FloatFormat, Mesh, Pipeline, Plan, PlanCode, PlanError, WrittenSchedule
from stretto.dsl.pipeline import ITEMS, MICROBATCH_AXIS
from stretto.dsl.syntax import WORDS
from stretto.ir.pipelined_module import MICROBATCH

WRITTEN = """schedule mine(stages p, microbatches m) {   # { no brace
  stage s {
    warmup  min(p - s - 1, m) { F }

    drain   { F B }
  }
}"""


def refused_at(marked: str) -> PlanError:
    """The error of a plan, which must point at what stands between the two marks « and »."""
    before, remainder = f"mesh (pp=2, dp=2)\n{marked}".split("«")
    inside, after = remainder.split("»")
    with pytest.raises(PlanError) as caught:
        Plan.parse(before + inside + after, "gpt.plan")
    span = caught.value.span
    assert span is not None
    assert (span.line, span.column) == (before.count("\n") + 1, len(before) - before.rfind("\n")), caught.value
    assert span.length == max(1, len(inside)), caught.value
    return caught.value


def test_a_pipeline_says_all_of_its_items_and_prints_them_in_one_line() -> None:
    plan = Plan.parse(
        "mesh (pp=2)\npipeline over pp {\n  transfer bf16  # cast\n\n  microbatches 16 schedule zb-v chunks 2\n"
        '  split "layers.{4,8}",\n    "head"\n  times 1, 1.5, .5e0, 0 memory 8\n barriers 2 per microbatch }'.replace(
            ".5e0", "5e-1"
        )
    )
    assert plan.pipeline == Pipeline(
        "pp", 16, "zb-v", 2, Balance.TIME, ("layers.{4,8}", "head"), (1, 1.5, 0.5, 0), 8, FloatFormat.BF16, True, 2
    )
    assert str(plan.pipeline) == (
        'pipeline over pp { schedule zb-v  chunks 2  microbatches 16  split "layers.{4,8}", "head"  '
        "times 1, 1.5, 0.5, 0  memory 8  transfer bf16  barriers 2  per microbatch }"
    )
    assert Plan.parse(str(plan)) == plan


def test_what_a_pipeline_leaves_out_has_a_usual_value() -> None:
    plan = Plan.parse("mesh (pp=2)\npipeline over pp { microbatches 4 balance layers }")
    assert str(plan.pipeline) == "pipeline over pp { schedule 1f1b  microbatches 4  balance layers }"
    assert Plan.parse("mesh (pp=2)").pipeline is None


def test_a_schedule_stands_in_a_plan_and_prints_as_in_a_file() -> None:
    plan = Plan.parse(f"mesh (pp=2)\n{WRITTEN}  # and a word\npipeline over pp {{ schedule mine microbatches 4 }}")
    assert plan.schedules == (WrittenSchedule.parse(WRITTEN),)
    assert [str(statement.span) for statement in plan.statements] == ["<plan>:2:1", "<plan>:9:1"]
    assert Plan.parse(str(plan)) == plan


@pytest.mark.parametrize(
    ("marked", "shown", "help"),
    [
        ("pipeline over pp { «microbatch» 8 }", "expected schedule, chunks,", 'did you mean "microbatches"?'),
        ("«pipeline over pp { schedule zb-v }»", "expected microbatches", "add, for example: microbatches 8"),
        ("pipeline over pp { microbatches 2 «microbatches» 3 }", "", "keep one of them"),
        ("pipeline over pp { microbatches «two» }", "expected a whole number", ""),
        ("pipeline over pp { microbatches «1.5» }", "expected a whole number", ""),
        ("pipeline over pp { microbatches 2, «3» }", "expected a number alone", ""),
        ("pipeline over pp { «microbatches 0» }", "expected 1 to 1000000", ""),
        (f"pipeline over pp {{ «microbatches {'9' * 50}» }}", "expected 1 to 1000000", ""),
        ("pipeline over pp { microbatches 2 «chunks -1» }", "expected 1 to 1000000", ""),
        ("pipeline over pp { microbatches 2 balance «tim» }", "memory or layers", 'did you mean "time"?'),
        ("pipeline over pp { microbatches 2 transfer «fp8» }", "expected fp64, fp32, bf16 or fp16", ""),
        ('pipeline over pp { microbatches 2 schedule «"a"» }', "without quotes", ""),
        ("pipeline over pp { microbatches 2 split «head» }", "expected a pattern in quotes", ""),
        ("pipeline over pp { microbatches 2 per «layer» }", "expected microbatch", ""),
        ("pipeline over pp { microbatches 2 «times 1, 1» }", "expected f,b,w or f,b,w,c", ""),
        ("pipeline over pp { microbatches 2 «times 0, 0, 0, 1» }", "expected f,b,w or f,b,w,c", ""),
        ("pipeline over pp { microbatches 2 times 1, «x», 1 }", "expected a number", ""),
        ("pipeline over pp { microbatches 2 «barriers 3» }", "expected 1 or 2", ""),
        ("pipeline over pp { microbatches 2 «memory 0» }", "expected a number of activations above 0", ""),
        ('pipeline over pp { microbatches 2 split "a" «balance memory» }', "", "keep one of the two"),
    ],
)  # fmt: skip
def test_a_bad_item_is_refused_where_it_stands(marked: str, shown: str, help: str) -> None:
    error = refused_at(marked)
    assert error.code == PlanCode.BAD_PIPELINE
    assert shown in error.expected
    assert error.help == help


def test_a_bad_pattern_of_a_split_is_refused() -> None:
    assert refused_at('pipeline over pp { microbatches 2 split "a", «"["» }').code == PlanCode.BAD_PATTERN


@pytest.mark.parametrize(
    ("marked", "expected"),
    [
        ("pipeline «pp» { microbatches 2 }", 'expected "over"'),
        ("pipeline over pp«,» dp { microbatches 2 }", 'expected "{"'),
        ("pipeline over pp {«»", f"expected {', '.join(ITEMS[:-1])} or per"),
        ("pipeline over pp { split «}»", "expected a pattern in quotes, a word or a number"),
        (f"{WRITTEN} «mesh» (dp=2)", "expected the end of the line"),
        ("schedule mine(stages p«)» { }\nshard inputs batch over dp", 'expected ","'),
        ("schedule mine\n«mesh» (dp=2)", 'expected "("'),
        ("schedule mine(stages p, microbatches m) {«»\n\n", 'expected "placement" or "stage"'),
        ("schedule mine(stages p, microbatches m) { stage s { drain { «X» } } }", "expected a task (F, B, W or BW)"),
        ("shard inputs batch over dp «schedule» m(stages p) {\n}", 'expected "," or the end of the line'),
    ],
)  # fmt: skip
def test_a_syntax_error_says_what_was_expected(marked: str, expected: str) -> None:
    error = refused_at(marked)
    assert (error.code, error.expected) == (PlanCode.SYNTAX, expected)


def test_the_pipeline_axis_is_on_the_mesh() -> None:
    error = refused_at("pipeline over «ppp» { microbatches 2 }")
    assert (error.code, error.help) == (PlanCode.UNKNOWN_AXIS, 'did you mean "pp"?')


@pytest.mark.parametrize(
    "marked",
    [
        "pipeline over pp { microbatches 2 }\nshard inputs dim 1 over «pp»",
        'shard "a" columns over dp, «pp»\npipeline over pp { microbatches 2 }',
        "shard activations tokens over «pp»\npipeline over pp { microbatches 2 }",
    ],
)
def test_the_pipeline_axis_shards_nothing_else(marked: str) -> None:
    assert refused_at(marked).code == PlanCode.PIPELINE_AXIS


def test_stages_do_not_lie_on_the_axis_that_shards_the_batch() -> None:
    with pytest.raises(PlanError, match='an axis named "dp" shards the batch') as caught:
        Plan.parse("mesh (dp=2)\npipeline over dp { microbatches 2 }")
    assert caught.value.code == PlanCode.PIPELINE_AXIS


def test_a_vocabulary_may_be_sharded_over_the_stages() -> None:
    text = 'mesh (pp=2)\npipeline over pp { schedule 1f1b  microbatches 2 }\nshard "embed" vocab over pp'
    assert str(Plan.parse(text)) == text


def test_no_axis_of_the_mesh_is_named_as_the_microbatch_axis() -> None:
    assert MICROBATCH_AXIS == MICROBATCH
    text = "mesh (pp=2, microbatch=2)"
    assert Plan.parse(text).mesh.size == 4
    with pytest.raises(PlanError, match='the mesh has an axis "microbatch"') as caught:
        Plan.parse(f"{text}\npipeline over pp {{ microbatches 2 }}")
    assert caught.value.code == PlanCode.PIPELINE_AXIS


def test_a_second_pipeline_and_a_second_schedule_of_one_name_are_refused() -> None:
    one = "pipeline over pp { microbatches 2 }"
    assert refused_at(f"{one}\n«{one}»").code == PlanCode.DUPLICATE_PIPELINE
    error = refused_at(f"{WRITTEN}\n«schedule mine»{WRITTEN.removeprefix('schedule mine')}")
    assert error.code == PlanCode.DUPLICATE_SCHEDULE
    assert error.notes[0][1] is not None


def test_every_item_is_offered() -> None:
    assert WORDS["CLAUSE"] == ITEMS


def test_a_pipeline_made_in_python_is_checked_too() -> None:
    with pytest.raises(PlanError, match="cannot have 0 chunks"):
        Pipeline("pp", 2, chunks=0)
    with pytest.raises(PlanError, match="a schedule named"):
        Pipeline("pp", 2, "a b")
    with pytest.raises(PlanError, match='no axis "pp"'):
        Plan(Mesh((("dp", 2),)), (Pipeline("pp", 2),))
