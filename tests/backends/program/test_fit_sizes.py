"""Expressions are found from a few samples, and what no expression tells is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stretto.backends.program.fit_sizes import Differs, distinguishes, fit
from stretto.runtime.reading.sizes import value_of

SAMPLES = [{"batch": 4, "seq": 16}, {"batch": 10, "seq": 35}, {"batch": 14, "seq": 50}]
PARTS = (2, 4)


def fitted(text: str, samples: list[dict[str, int]] = SAMPLES) -> str:
    """The expression that is found for the values of another one."""
    actual = fit([[value_of(text, sample)] for sample in samples], samples, PARTS, "program")
    expression = actual.places["0"]
    assert isinstance(expression, str)
    return expression


@pytest.mark.parametrize(
    "text",
    [
        "batch",
        "seq * 48",
        "batch * seq * 3",
        "batch * seq * seq",
        "(seq + 1) // 2 * batch * 16",
        "(batch * seq * 3 + 3) // 4",
        "seq - 1",
        "batch * (seq + 1) * 8",
        "64 - seq",
    ],
)
@given(batch=st.integers(2, 500), seq=st.integers(2, 500))
def test_the_expression_of_a_shape_is_found(text: str, batch: int, seq: int) -> None:
    sizes = {"batch": batch, "seq": seq}
    assert value_of(fitted(text), sizes) == value_of(text, sizes)


def test_chunks_are_told_from_products_for_odd_samples() -> None:
    assert fitted("(batch + 1) // 2", [{"batch": n} for n in (5, 9, 15)]) == "((batch + 1) // 2)"


def test_places_say_only_what_differs() -> None:
    trees = [{"op": "view", "args": [{"%": 3}, [item["batch"], 7]], "location": None} for item in SAMPLES]
    assert fit(trees, SAMPLES, PARTS, "program").places == {"args": {"1": {"0": "batch"}}}


def test_an_offset_is_reported_so_that_it_can_be_confirmed() -> None:
    assert fit([[item["seq"] - 1] for item in SAMPLES], SAMPLES, PARTS, "p").has_offsets
    assert not fit([[item["seq"] * 2] for item in SAMPLES], SAMPLES, PARTS, "p").has_offsets


@pytest.mark.parametrize(
    ("trees", "said"),
    [
        ([["mm"], ["mm"], ["bmm"]], r"program\[0\] is 'mm' at batch = 4, seq = 16, and 'bmm' at batch = 14"),
        ([[1], [1, 2], [1]], "program is"),
        ([{"a": 1}, {"b": 1}, {"a": 1}], "program is"),
        ([[0.5], [0.25], [0.125]], r"program\[0\] is 0.5 at"),
        ([[True], [1], [True]], r"program\[0\]"),
        ([[None], [3], [None]], r"program\[0\] is None"),
        ([[3], [5], [4]], r"program\[0\] is 3, 5, 4, which no expression of sizes gives"),
    ],
)
def test_programs_that_differ_in_more_than_sizes_are_refused_with_the_first_place(trees: list[Any], said: str) -> None:
    with pytest.raises(Differs, match=said):
        fit(trees, SAMPLES, PARTS, "program")


def test_samples_in_which_two_products_look_alike_are_known() -> None:
    assert distinguishes(SAMPLES, ["batch", "seq"])
    alike = [{"batch": 2, "seq": 4}, {"batch": 4, "seq": 8}, {"batch": 6, "seq": 12}]
    assert not distinguishes(alike, ["batch", "seq"])
