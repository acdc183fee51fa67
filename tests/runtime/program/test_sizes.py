"""Expressions of sizes: what they mean, and that nothing else is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stretto.runtime.reading.sizes import BadExpression, holds, parse, value_of

SIZES = {"batch": 5, "seq": 12}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("batch", 5),
        ("batch * seq + 1", 61),
        ("batch * (seq + 1)", 65),
        ("(batch + 1) // 2 * 16", 48),
        ("-batch // 2", -3),
        ("seq % batch", 2),
        ("20 - batch - seq", 3),
        ("100 // batch // 2", 10),
    ],
)
def test_an_expression_means_what_python_means_by_it(text: str, value: int) -> None:
    assert value_of(text, SIZES) == value == eval(text, {}, dict(SIZES))


@pytest.mark.parametrize("text", ["batch % 2 == 1", "seq != 64", "batch < seq", "batch <= 5", "seq > 3", "seq >= 12"])
def test_a_condition_that_is_true_holds(text: str) -> None:
    assert holds(text, SIZES)


@pytest.mark.parametrize("text", ["batch == seq", "batch * seq < 60", "seq % 5 == 0"])
def test_a_condition_that_is_false_does_not(text: str) -> None:
    assert not holds(text, SIZES)


@pytest.mark.parametrize(
    "text",
    ["", "batch +", "(batch", "batch)", "2 batch", "batch ** 2", "__import__('os')", "batch.real", "batch[0]", "1e9",
     "batch if seq else 1", "lambda: 1", "'text'", "batch == 5", "+1", "9" * 19, "1 + " * 200 + "1",
     "(" * 60 + "1" + ")" * 60],
)  # fmt: skip
def test_what_is_no_expression_of_sizes_is_refused(text: str) -> None:
    with pytest.raises(BadExpression):
        parse(text)


@pytest.mark.parametrize("text", ["batch", "batch = 5", "batch == 5 == 5", "batch == 5 and seq == 12", "not batch"])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(BadExpression):
        parse(text, condition=True)


def test_a_size_that_is_not_given_is_named() -> None:
    with pytest.raises(BadExpression, match="'width', which is not a size"):
        value_of("batch * width", SIZES)


def test_division_by_zero_is_no_crash() -> None:
    with pytest.raises(BadExpression, match="divides by zero"):
        value_of("batch // (seq - 12)", SIZES)


@given(st.text(alphabet="ab12+-*/%()=<>! _", max_size=40))
def test_any_text_is_an_expression_or_is_refused(text: str) -> None:
    try:
        value_of(text, {"a": 3, "b": 4})
    except BadExpression:
        return
    assert value_of(text, {"a": 3, "b": 4}) == eval(text.strip(), {}, {"a": 3, "b": 4})
