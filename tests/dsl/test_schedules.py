"""Written schedules: text to values and back, and every mistake that the text can show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stretto.dsl import PlanCode, PlanError
from stretto.dsl.error import WrittenCode
from stretto.dsl.expression import Binary, Call, Expression, Name, Negative, Number, evaluate
from stretto.dsl.schedule import Op, Phase, Shape, WrittenSchedule
from stretto.dsl.schedule_syntax import KEYWORDS, WORDS

ONE_F_ONE_B = """schedule mine(stages p, microbatches m) {
  stage s {
    warmup min(p - s - 1, m) { F }
    steady m - min(p - s - 1, m) { F B }
    drain { B }
  }
}"""

expressions: st.SearchStrategy[Expression] = st.recursive(
    st.builds(Number, st.integers(0, 99)) | st.builds(Name, st.sampled_from(["p", "m", "s"])),
    lambda inner: st.one_of(
        st.builds(Binary, st.sampled_from("+-*/%"), inner, inner),
        st.builds(Negative, inner),
        st.builds(Call, st.sampled_from(["min", "max"]), st.lists(inner, min_size=2, max_size=3).map(tuple)),
    ),
    max_leaves=8,
)
ops = st.builds(Op, st.sampled_from(["F", "B", "W", "BW"]), st.none() | expressions)
phases = st.builds(
    Phase, st.sampled_from(["warmup", "steady", "drain"]), st.none() | expressions,
    st.lists(ops, min_size=1, max_size=4).map(tuple),
)  # fmt: skip
schedules = st.builds(
    WrittenSchedule, st.just("mine"), st.sampled_from([("p", "m"), ("p", "m", "v")]), st.just("s"),
    st.lists(phases, min_size=1, max_size=4).map(tuple), st.sampled_from(Shape),
)  # fmt: skip


def refused_at(marked: str) -> PlanError:
    """The error of a schedule, which must point at what stands between the two marks « and »."""
    before, remainder = marked.split("«")
    inside, after = remainder.split("»")
    with pytest.raises(PlanError) as caught:
        WrittenSchedule.parse(before + inside + after, "a.schedule")
    span = caught.value.span
    assert span is not None
    assert (span.line, span.column) == (before.count("\n") + 1, len(before) - before.rfind("\n")), caught.value
    assert span.length == max(1, len(inside))
    return caught.value


@given(schedules)
def test_a_printed_schedule_says_the_same(schedule: WrittenSchedule) -> None:
    assert WrittenSchedule.parse(str(schedule)) == schedule


def test_a_schedule_is_printed_as_it_is_written() -> None:
    assert str(WrittenSchedule.parse(ONE_F_ONE_B)) == ONE_F_ONE_B


@given(expressions, st.fixed_dictionaries({"p": st.integers(1, 9), "m": st.integers(1, 9), "s": st.integers(0, 8)}))
def test_an_expression_has_the_value_that_python_gives_it(expression: Expression, values: dict[str, int]) -> None:
    text = str(expression).replace("/", "//")
    try:
        expected = eval(text, {"min": min, "max": max}, dict(values))
    except ZeroDivisionError:
        with pytest.raises(PlanError) as caught:
            evaluate(expression, values)
        assert caught.value.code == WrittenCode.DIVISION
        return
    assert evaluate(expression, values) == expected


@pytest.mark.parametrize(
    ("marked", "expected"),
    [
        ("«shedule» a(stages p, microbatches m) { stage s { drain { F } } }", 'expected "schedule"'),
        ("schedule a(stages p«)» { stage s { drain { F } } }", 'expected ","'),
        ("schedule a(stages p, microbatches m) { stage s { «}» }", 'expected "warmup", "steady" or "drain"'),
        ("schedule a(stages p, microbatches m) { stage s { drain { «G» } } }", "expected a task (F, B, W or BW)"),
        ("schedule a(stages p, microbatches m) { stage s { warmup 1 + «{» F } } }", "expected an expression"),
        ("schedule a(stages p, microbatches m) {\n  stage s { drain { F }«»\n", 'expected "warmup"'),
    ],
)
def test_a_syntax_error_says_what_was_expected(marked: str, expected: str) -> None:
    error = refused_at(marked)
    assert error.code == PlanCode.SYNTAX and error.expected.startswith(expected)


def test_a_misspelt_word_is_offered() -> None:
    error = refused_at("schedule a(stages p, microbatches m) { stage s { «warmpu» 1 { F } } }")
    assert error.help == 'did you mean "warmup"?'


def test_a_stray_character_is_named() -> None:
    error = refused_at("schedule a(stages p, microbatches m) { stage s { drain { F«;» B } } }")
    assert error.code == PlanCode.STRAY_CHARACTER and '";"' in error.message


@pytest.mark.parametrize("text", ["(stages p, microbatches «p») { stage s", "(stages p, microbatches m) { stage «m»"])
def test_a_name_that_is_given_twice_points_at_both(text: str) -> None:
    error = refused_at(f"schedule a{text} {{ drain {{ F }} }} }}")
    assert error.code == WrittenCode.NAME_TWICE and error.notes[0][1] is not None


def test_every_terminal_of_the_grammar_has_words() -> None:
    from stretto.dsl.schedule import _grammar

    unseen = {"COMMENT", "BLANK"}
    assert {terminal.name for terminal in _grammar().terminals} - unseen == set(WORDS) - {"$END"}
    assert set(KEYWORDS) <= set(WORDS)
