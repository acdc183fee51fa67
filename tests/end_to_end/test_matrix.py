"""Models under plans: what the ranks compute together is what one device computes, to 1e-9 in float64.

Every case compares outputs, all gradients, and all parameters after three steps of AdamW; labels hold ignored ones.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product

import pytest
from stretto.frontend.captured import Mode

from ..subsets import only, some
from .checking import assert_equal
from .models import MODELS, Case, Size, plan

TOKENS = "shard activations tokens over tp"
EVEN = Size(layers=1)
ODD = Size(vocab=41, width=13, heads=6, head=4, inner=21, layers=1, seq=9)
"""Nothing divides by 2, 3 or 4 but the number of heads, which does not divide by 4; 41 over 4 leaves 11, 11, 11, 8."""

ALL_PLANS: dict[str, tuple[str, tuple[str, ...]]] = {
    "dp": ("dp=2", ()),
    "tp": ("tp=2", ()),
    "tp_sequence": ("tp=2", (TOKENS,)),
    "dp_tp": ("dp=2, tp=2", ()),
    "dp_tp_sequence": ("dp=2, tp=2", (TOKENS,)),
    "tp_before_dp": ("tp=2, dp=2", (TOKENS,)),
    "three_way": ("tp=3", ()),
    "three_way_sequence": ("tp=3", (TOKENS,)),
    "four_way": ("tp=4", ()),
    "four_way_sequence": ("tp=4", (TOKENS,)),
    "idle_axis": ("pod=2, dp=1, tp=2", (TOKENS,)),
    "batch_over_two_axes": ("pod=2, dp=2, tp=2", ("shard inputs batch over pod, dp", TOKENS)),
}
"""Name: mesh, and statements beside Megatron's placements of the parameters."""


@cache
def _case(model: str, size: Size) -> Case:
    return MODELS[model](size)


def _check(model: str, size: Size, name: str, mode: Mode = Mode.TRAIN) -> None:
    mesh, lines = ALL_PLANS[name]
    assert_equal(_case(model, size), plan(model, mesh, *lines), mode)


@pytest.mark.parametrize(
    ("model", "name"),
    only(
        [(model, "dp_tp_sequence") for model in MODELS],
        product(MODELS, ["dp_tp", "dp_tp_sequence"]),
    ),
)
def test_each_model_trains_as_on_one_device(model: str, name: str) -> None:
    _check(model, EVEN, name)


@pytest.mark.parametrize(
    "name",
    only(
        ["tp_before_dp", "idle_axis", "four_way_sequence"],
        ["dp", "tp", "tp_before_dp", "idle_axis", "four_way_sequence"],
    ),
)
def test_one_model_trains_under_each_kind_of_plan(name: str) -> None:
    _check("gpt", EVEN, name)


@pytest.mark.parametrize(
    ("model", "name"),
    only(
        [("llama", "three_way")],
        product(["llama", "gpt2"], ["three_way", "four_way_sequence"]),
    ),
)
def test_extents_that_no_axis_divides_change_nothing(model: str, name: str) -> None:
    _check(model, ODD, name)


@pytest.mark.parametrize("model", some("llama", "gpt"))
def test_a_head_tied_to_the_embedding_gets_one_gradient(model: str) -> None:
    _check(model, replace(ODD, tied=True), "dp_tp_sequence")


def test_a_batch_may_be_sharded_over_two_axes_of_three() -> None:
    _check("llama", EVEN, "batch_over_two_axes")


@pytest.mark.parametrize("model", MODELS)
def test_logits_in_inference_are_global(model: str) -> None:
    _check(model, ODD, "dp_tp_sequence", Mode.INFER)


def test_a_vocabulary_of_50257_is_shared_by_four_ranks() -> None:
    _check("gpt", replace(EVEN, vocab=50257, width=4, heads=1, batch=2, seq=4, tied=True), "four_way")


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_PLANS)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("size", [replace(EVEN, layers=2), replace(ODD, layers=2)], ids=["even", "odd"])
@pytest.mark.parametrize("model", MODELS)
def test_every_model_and_plan_trains_as_on_one_device(model: str, size: Size, tied: bool, name: str) -> None:
    _check(model, replace(size, tied=tied), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_PLANS)
@pytest.mark.parametrize("size", [EVEN, ODD], ids=["even", "odd"])
@pytest.mark.parametrize("model", MODELS)
def test_every_model_and_plan_infers_as_on_one_device(model: str, size: Size, name: str) -> None:
    _check(model, size, name, Mode.INFER)
