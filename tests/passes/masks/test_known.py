"""What is known of tensors, against tensors: each element has a value that the cases allow at its position."""

from __future__ import annotations

from math import inf

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stretto.ir.types import TensorType
from stretto.passes.masks import elementwise, views
from stretto.passes.masks.known import Cases, Interval, Known, Ramp, cases
from torch import Tensor

ROWS, COLUMNS = 4, 5
SHAPE = (ROWS, COLUMNS)
Pair = tuple[Known | None, Tensor]


def _result(name: str, *operands: Pair | float, **arguments: object) -> Pair:
    """An operation on what is known and on tensors."""
    known = {str(i): each[0] if isinstance(each, tuple) else each for i, each in enumerate(operands)}
    tensors = [each[1] if isinstance(each, tuple) else each for each in operands]
    packet, overload = name.split(".")
    out = getattr(getattr(torch.ops.aten, packet), overload)(*tensors, **arguments)
    return elementwise.result(name, arguments, known, TensorType(out.dtype, tuple(out.shape))), out


def _positions(dim: int, start: int, step: int) -> Pair:
    """Integers that grow along one dim of the shape."""
    end = start + step * SHAPE[dim]
    counted = torch.arange(start, end, step)
    known = views.made("arange.start_step", {"start": start, "step": step}, TensorType(torch.int64, (SHAPE[dim],)))
    apart = (ROWS, 1) if dim == 0 else (1, COLUMNS)
    assert known is not None
    viewed = views.view("view.default", {}, known, (SHAPE[dim],), apart)
    return views.broadcast(viewed, SHAPE), counted.reshape(apart).expand(SHAPE)


positions = st.builds(_positions, st.integers(0, 1), st.integers(-3, 3), st.sampled_from([1, 2, -1]))
numbers = st.recursive(
    positions,
    lambda inner: (
        st.builds(_result, st.sampled_from(["add.Tensor", "sub.Tensor"]), inner, inner)
        | st.builds(_result, st.just("mul.Scalar"), inner, st.integers(-2, 2))
    ),
    max_leaves=3,
)
compared = st.builds(
    _result, st.sampled_from([f"{n}.Tensor" for n in ("lt", "le", "eq", "ne", "ge", "gt")]), numbers, numbers
)
unknown = st.just((None, (torch.arange(ROWS * COLUMNS) % 3 == 0).reshape(SHAPE)))
conditions = st.recursive(
    compared | unknown,
    lambda inner: (
        st.builds(_result, st.sampled_from(["bitwise_and.Tensor", "logical_or.default"]), inner, inner)
        | st.builds(_result, st.sampled_from(["bitwise_not.default", "logical_not.default"]), inner)
    ),
    max_leaves=4,
)


def _number(value: float) -> Pair:
    known = views.made("full.default", {"fill_value": value}, TensorType(torch.float64, SHAPE))
    return known, torch.full(SHAPE, value, dtype=torch.float64)


masks = st.builds(
    lambda condition, one, other: _result("where.self", condition, _number(one), _number(other)),
    conditions, st.sampled_from([0.0, -1.0]), st.sampled_from([-inf, -2.0]),
)  # fmt: skip


def _allows(known: Known | None, tensor: Tensor) -> bool:
    for row in range(tensor.shape[0]):
        for column in range(tensor.shape[1]):
            value = tensor[row, column].item()
            if isinstance(known, Ramp):
                if value != known.constant + known.steps[0] * row + known.steps[1] * column:
                    return False
            elif isinstance(known, Cases):
                at = known.steps[0] * row + known.steps[1] * column
                if not any(v in (value, None) and i & Interval(at, at) for v, i in known.where):
                    return False
    return True


@settings(max_examples=100, deadline=None)
@given(numbers | conditions | masks)
def test_elements_have_values_that_are_allowed_where_they_are(made: Pair) -> None:
    assert _allows(*made)


@settings(max_examples=50, deadline=None)
@given(masks, st.integers(0, 3), st.integers(0, 4), st.integers(-2, 2), st.sampled_from(["tril", "triu"]))
def test_views_and_triangles_move_what_is_known(made: Pair, row: int, start: int, diagonal: int, side: str) -> None:
    known, tensor = made
    if known is None:
        return
    turned = views.view("t.default", {}, known, SHAPE, SHAPE[::-1])
    assert _allows(turned, tensor.t())
    cut = tensor[:, start:]
    assert _allows(views.view("slice.Tensor", {"dim": 1, "start": start}, known, SHAPE, tuple(cut.shape)), cut)
    finite = _result("where.self", (None, tensor == 0), _number(1.0), _number(-1.0))
    triangle = getattr(torch, side)(finite[1], diagonal)
    assert _allows(views.triangular(f"{side}.default", {"diagonal": diagonal}, finite[0], SHAPE), triangle)
    apart = views.view("view.default", {}, known, SHAPE, (ROWS, 1, COLUMNS))
    selected = (
        None if apart is None else views.view("select.int", {"dim": 1, "index": 0}, apart, (ROWS, 1, COLUMNS), SHAPE)
    )
    assert selected == known


def test_cases_of_the_same_value_are_joined_and_those_that_are_nowhere_left_out() -> None:
    made = cases((1, -1), [(0.0, Interval(0, 2)), (0.0, Interval(4, 5)), (1.0, Interval(3, 2))])
    assert made == Cases((1, -1), ((0.0, Interval(0, 5)),))


@pytest.mark.parametrize(("others", "step"), [((3,), 1), ((1, 2), 1), ((5,), None)])
def test_ramps_one_after_the_other_are_one_where_they_go_on(others: tuple[int, ...], step: int | None) -> None:
    parts: list[tuple[Known | None, tuple[int, ...]]] = [(Ramp((1,), 0), (3,))]
    parts += [(Ramp((0,), other + 2 if len(others) > 1 else other), (1,)) for other in others]
    joined = views.joined(parts, 0, (3 + len(others),))
    assert joined == (None if step is None else Ramp((step,), 0))
