"""The statement about precision: what it says, prints, and refuses."""

import pytest
from stretto.dsl import FloatFormat, Mesh, Plan, PlanCode, PlanError, Precision


def refused(statement: str) -> PlanError:
    with pytest.raises(PlanError) as caught:
        Plan.parse(f"mesh (dp=2)\n{statement}\n", "gpt.plan")
    return caught.value


def test_a_precision_stands_on_one_line_or_several_and_prints_as_one() -> None:
    several = Plan.parse("precision {\n  reduce fp32  # sums\n\n  params fp32 compute bf16\n}\nmesh (dp=2)")
    assert several.precision == Precision(FloatFormat.FP32, FloatFormat.BF16, FloatFormat.FP32)
    assert str(several) == "mesh (dp=2)\nprecision { params fp32  compute bf16  reduce fp32 }"
    assert Plan.parse("mesh (dp=2)").precision is None


@pytest.mark.parametrize(
    ("statement", "column", "help"),
    [
        ("precision { comput bf16 }", 13, 'did you mean "compute"?'),
        ("precision { compute bfloat16 }", 21, 'did you mean "bf16"?'),
        ("precision { params half }", 20, 'did you mean "fp16"?'),
        ("precision { compute bf16 compute fp16 }", 26, "keep one of them"),
    ],
)
def test_an_unknown_or_repeated_word_is_refused_where_it_stands(statement: str, column: int, help: str) -> None:
    error = refused(statement)
    assert error.code == PlanCode.BAD_PRECISION
    assert error.span is not None
    assert (error.span.line, error.span.column, error.help) == (2, column, help)


def test_a_second_precision_is_refused_and_the_first_is_shown() -> None:
    error = refused("precision { compute bf16 }\nprecision { reduce bf16 }")
    assert (error.code, error.span and error.span.line) == (PlanCode.DUPLICATE_PRECISION, 3)
    assert error.notes[0][1] is not None
    assert error.notes[0][1].line == 2


def test_an_empty_precision_made_in_python_is_refused() -> None:
    with pytest.raises(PlanError, match="is empty"):
        Precision()
    plan = Plan(Mesh((("dp", 2),)), (Precision(compute=FloatFormat.FP16),))
    assert str(plan).endswith("precision { compute fp16 }")
