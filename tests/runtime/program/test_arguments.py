"""Arguments survive JSON, and what a program cannot hold is refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stretto.runtime.program.arguments import DTYPES, Slot, Value, decode, encode, slots_in

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS | st.sampled_from(list(DTYPES.values())) | st.integers(0, 99).map(Slot), st.lists, max_leaves=12
)


@given(VALUES)
def test_every_argument_is_the_same_after_json(value: Value) -> None:
    text = json.dumps(encode(value), allow_nan=False)
    assert decode(json.loads(text)) == value


def test_nan_is_written_by_name() -> None:
    value = decode(encode(math.nan))
    assert isinstance(value, float)
    assert math.isnan(value)


def test_slots_are_found_inside_lists() -> None:
    assert list(slots_in([Slot(1), [2, Slot(3)], "x"])) == [1, 3]


@pytest.mark.parametrize("value", [torch.device("cpu"), torch.strided, torch.ones(()), {"a": 1}, 1j])
def test_what_a_program_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="cannot hold"):
        encode(value)


@pytest.mark.parametrize("value", [{}, {"%": -1}, {"%": "1"}, {"dtype": "device"}, {"float": "1"}, {"%": 1, "x": 2}])
def test_objects_that_are_no_arguments_are_refused(value: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="is not an argument"):
        decode(value)  # type: ignore[arg-type]
