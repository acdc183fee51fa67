"""Which dims are dynamic, what a call has of them, and what a model's graph asks of their sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stretto.frontend.capture.call import BoundCall, bind_call
from stretto.frontend.captured import CaptureError, Mode
from stretto.frontend.dynamic_sizes.dynamic_dims import DynamicDims, SizeRange, resized
from stretto.frontend.dynamic_sizes.size_guards import NotSymbolic, SizeGuards
from stretto.frontend.dynamic_sizes.symbolic_capture import forward_symbolically
from stretto.frontend.targets.fake_parameters import fake_parameters
from stretto.runtime.reading.sizes import holds
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

NAMED: dict[str, Any] = {"x": {0: "batch", 1: ("seq", 2, 64)}, "y": {0: "batch"}}


class Model(nn.Module):
    """Takes x (batch, seq) and perhaps y (batch), and does with them what a test wants."""

    def __init__(self, body: Any = lambda x, y: x.sum()) -> None:
        super().__init__()
        self.body = body
        self.table = nn.Parameter(torch.zeros(32))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        result: Tensor = self.body(x, y) + self.table.sum()
        return result


def call(x: Tensor | None = None, y: Tensor | None = None) -> BoundCall:
    given = {} if y is None else {"y": y}
    return bind_call(Model(), (torch.ones(4, 6) if x is None else x,), given)


def guards(body: Any, mode: Mode = Mode.INFER) -> SizeGuards:
    given = call(torch.ones(4, 6), torch.ones(4))
    return forward_symbolically(Model(body), given, DynamicDims.of(NAMED).in_call(given), mode=mode).finished().guards


def test_sizes_of_a_call_have_all_their_places() -> None:
    sizes = DynamicDims.of(NAMED).in_call(call(y=torch.ones(4)))
    assert sizes["batch"].size == 4 and sizes["batch"].places == ((0, 0), (1, 0))
    assert sizes["seq"].range == SizeRange("seq", 2, 64)


def test_an_input_that_a_call_leaves_out_is_no_error() -> None:
    assert DynamicDims.of(NAMED).in_call(call())["batch"].places == ((0, 0),)


def test_dims_are_counted_from_the_end_too() -> None:
    assert DynamicDims.of({"x": {-1: "seq"}}).in_call(call())["seq"].places == ((0, 1),)


def test_a_dim_of_one_element_is_left_to_its_own_program() -> None:
    assert set(DynamicDims.of(NAMED).in_call(call(torch.ones(1, 6)))) == {"seq"}


def test_torchs_own_dims_and_marks_are_read() -> None:
    dims = DynamicDims.of({"x": {0: torch.export.Dim("batch", min=2, max=9)}})
    assert dims.in_call(call())["batch"].range == SizeRange("batch", 2, 9)
    marked = torch.ones(4, 6)
    torch._dynamo.mark_dynamic(marked, 1, min=3, max=8)
    assert DynamicDims.of(None).in_call(call(marked))["x_1"].range == SizeRange("x_1", 3, 8)


def test_a_mark_is_remembered_for_later_tensors() -> None:
    dims, marked = DynamicDims.of(None), torch.ones(4, 6)
    torch._dynamo.mark_dynamic(marked, 0)
    dims.in_call(call(marked))
    assert dims.in_call(call(torch.ones(7, 6)))["x_0"].size == 7


@pytest.mark.parametrize(
    "spec",
    [
        "batch",
        {"x": "batch"},
        {"x": {"0": "batch"}},
        {"x": {0: 3}},
        {"x": {0: "no name"}},
        {"x": {0: ("b", 9, 3)}},
        {"x": {0: ("b", 2, 3)}, "y": {0: ("b", 2, 4)}},
    ],
)
def test_what_marks_no_dims_is_refused(spec: Any) -> None:
    with pytest.raises(CaptureError) as error:
        DynamicDims.of(spec)
    assert error.value.code == "E0240"


@pytest.mark.parametrize("spec", [{"xx": {0: "batch"}}, {"x": {2: "batch"}}, {"x": {-3: "batch"}}])
def test_an_input_or_dim_that_is_not_there_is_refused(spec: Any) -> None:
    with pytest.raises(CaptureError) as error:
        DynamicDims.of(spec).in_call(call())
    assert error.value.code == "E0241"


def test_unequal_sizes_of_one_name_are_refused() -> None:
    with pytest.raises(CaptureError, match='dim 0 of "y" has 5 elements and dim 0 of "x" has 4') as error:
        DynamicDims.of(NAMED).in_call(call(y=torch.ones(5)))
    assert error.value.code == "E0242"


def test_resized_tensors_keep_what_is_not_dynamic() -> None:
    given = call(torch.ones(4, 6), torch.ones(4, dtype=torch.int64))
    x, y = resized(given, DynamicDims.of(NAMED).in_call(given), {"batch": 7, "seq": 6})
    assert x.shape == (7, 6) and y.shape == (7,) and y.dtype == torch.int64


@pytest.mark.parametrize(
    ("body", "like", "unlike"),
    [
        (lambda x, y: x * 2 if x.shape[0] % 2 == 0 else x, (10, 9), (5, 6)),
        (lambda x, y: x * 2 if x.shape[1] > 3 else x, (3, 4), (4, 3)),
        (lambda x, y: x[:, :5] * 2, (9, 7), (4, 4)),
        (lambda x, y: x.view(-1, 3), (3, 4), (4, 5)),
        (lambda x, y: x.sum() if x.shape[0] * x.shape[1] < 50 else x, (2, 24), (10, 10)),
    ],
    ids=["parity", "threshold", "slice", "view", "product"],
)
def test_the_guards_of_a_forward_are_found(body: Any, like: tuple[int, int], unlike: tuple[int, int]) -> None:
    actual = guards(body)
    assert admits(actual, *like) and not admits(actual, *unlike), actual


def admits(found: SizeGuards, batch: int, seq: int) -> bool:
    """Whether a capture holds for these sizes."""
    sizes = {"batch": batch, "seq": seq}
    within = all(
        low <= sizes[name] and (high is None or sizes[name] <= high) for name, (low, high) in found.ranges.items()
    )
    return within and all(holds(condition, sizes) for condition in found.conditions)


def test_a_slice_of_a_table_bounds_the_size() -> None:
    model = Model()
    given = call()
    model.body = lambda x, y: x + model.table[: x.shape[1]]
    actual = forward_symbolically(model, given, DynamicDims.of(NAMED).in_call(given), mode=Mode.TRAIN).finished().guards
    assert actual.ranges["seq"] == (2, 32)


def test_sizes_that_nothing_depends_on_have_no_conditions() -> None:
    assert guards(lambda x, y: (x * y[:, None]).sum(), Mode.TRAIN) == SizeGuards(
        {"batch": (2, None), "seq": (2, 64)}, ()
    )


def test_a_size_that_the_model_fixes_is_a_guard() -> None:
    assert "seq == 6" in guards(lambda x, y: x + torch.ones(6)).conditions


def test_dims_of_two_names_that_must_be_equal_are_so_by_a_condition() -> None:
    given = call(torch.ones(4, 6), torch.ones(4))
    sizes = DynamicDims.of({"x": {0: "a"}, "y": {0: "b"}}).in_call(given)
    actual = forward_symbolically(Model(lambda x, y: x * y[:, None]), given, sizes, mode=Mode.INFER).finished().guards
    assert any(condition in ("a == b", "b == a") for condition in actual.conditions)


def test_a_model_that_needs_plain_numbers_is_not_symbolic() -> None:
    with pytest.raises(NotSymbolic):
        guards(lambda x, y: x * int(x.shape[0] ** 0.5 * 3.7 > 2 + x.shape[1] ** 0.5))


def test_fake_parameters_are_as_good_as_real_ones() -> None:
    with fake_parameters():
        model = Model(lambda x, y: x * 2 if x.shape[0] % 2 == 0 else x)
    given = call()
    actual = forward_symbolically(model, given, DynamicDims.of(NAMED).in_call(given), mode=Mode.TRAIN).finished().guards
    assert actual.conditions == ("(batch % 2) == 0",)
    assert isinstance(model.table, FakeTensor)
