"""Constants as attributes, tensor types and placements as MLIR types: what goes in comes out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stretto.diagnostics import StrettoError
from stretto.ir.attributes import from_attribute, to_attribute
from stretto.ir.bindings import mlir
from stretto.ir.dialects.context import context
from stretto.ir.placement import (
    AxisPlacement,
    Mesh,
    Partial,
    Placement,
    Reduce,
    Replicate,
    Shard,
    axes_size,
    chunk_size,
    is_even,
    local_shape,
)
from stretto.ir.types import TensorType, from_mlir, to_mlir

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16]
DTYPES += [torch.int8, torch.uint8, torch.bool]
MESH: Mesh = (("pod", 2), ("dp", 3), ("a_long_name2", 2))
PLAIN = st.one_of(
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(allow_nan=False),
    st.text(),
    st.sampled_from(DTYPES),
)
KEYS = st.from_regex(r"[a-z][a-z0-9_]*", fullmatch=True)
CONSTANTS = st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=8)
PLACEMENTS: list[AxisPlacement] = [Replicate(), Shard(0), Shard(1), *(Partial(r) for r in Reduce)]


@settings(max_examples=150, derandomize=True, deadline=None)
@given(CONSTANTS)
def test_a_constant_is_the_same_after_a_way_through_text(value: Any) -> None:
    attribute = to_attribute(value)
    again = from_attribute(mlir.Attribute.parse(str(attribute), context()))
    assert _typed(again) == _typed(from_attribute(attribute)) == _typed(value)


@pytest.mark.parametrize("value", [math.inf, -math.inf, -0.0, 1e-300, 5e-324, 0.1])
def test_floats_that_decimals_lose_are_kept_bit_by_bit(value: float) -> None:
    again = from_attribute(mlir.Attribute.parse(str(to_attribute(value)), context()))
    assert math.copysign(1, again) == math.copysign(1, value) and again == value


@pytest.mark.parametrize(
    "value", [[], [True, False], [1, True], [[1, 2], [3]], [1.5, 2], ["tp"], [torch.bool, 1]], ids=str
)
def test_lists_keep_the_kinds_of_their_items(value: list[Any]) -> None:
    assert _typed(from_attribute(to_attribute(value))) == _typed(value)


def test_a_constant_of_no_known_kind_is_an_internal_error() -> None:
    with pytest.raises(TypeError, match="complex"):
        to_attribute(1j)  # type: ignore[arg-type]


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.fixed_dictionaries({axis: st.sampled_from(PLACEMENTS) for axis, _ in MESH}))
def test_a_placement_says_of_each_axis_what_it_was_made_of(by_axis: dict[str, AxisPlacement]) -> None:
    placement = Placement.of(2, by_axis, MESH)
    assert {axis: placement.on(axis) for axis, _ in MESH} == by_axis
    assert TensorType(torch.float32, (4, 6)).placed(placement, MESH).placement_on(MESH) == placement
    assert placement.is_replicated == all(p == Replicate() for p in by_axis.values())


@given(st.integers(0, 60), st.integers(1, 12))
def test_chunks_cover_a_dim_once_and_only_the_last_ones_are_short(extent: int, parts: int) -> None:
    chunk = chunk_size(extent, parts)
    sizes = [max(0, min(extent, (r + 1) * chunk) - r * chunk) for r in range(parts)]
    assert sum(sizes) == extent
    assert sizes == sorted(sizes, reverse=True)
    assert sum(0 < size < chunk for size in sizes) <= 1


def test_a_vocabulary_over_two_axes_is_one_flattened_group() -> None:
    placement = Placement.of(2, {"dp": Shard(0), "pod": Shard(0)}, MESH)
    assert placement.dims == (("pod", "dp"), ())
    assert axes_size(MESH, ("pod", "dp")) == 6
    assert local_shape((50257, 8), placement, MESH) == (8377, 8)
    assert not is_even(50257, ("pod", "dp"), MESH) and is_even(12, ("pod", "dp"), MESH)


def test_extents_give_the_global_shape_of_an_uneven_sharding() -> None:
    placed = TensorType(torch.float32, (3, 8)).placed(Placement.of(2, {"pod": Shard(0)}, MESH), MESH)
    assert placed.global_shape(MESH) == (6, 8)
    uneven = TensorType(torch.float32, (3, 8), placed.placement, (5, 8))
    assert uneven.global_shape(MESH) == (5, 8)
    assert str(to_mlir(uneven)) == 'tensor<3x8xf32, {extents = array<i64: 5, 8>, pod = "shard(0)"}>'


@pytest.mark.parametrize("text", ["shard(x)", "partial(mean)", "split(0)", "", "shard(0) "])
def test_a_placement_that_is_none_is_refused_with_what_one_is(text: str) -> None:
    type_ = mlir.Type.parse(f'tensor<4xf32, {{tp = "{text}"}}>', context())
    with pytest.raises(StrettoError) as caught:
        from_mlir(type_)
    assert caught.value.code == "E0503"
    assert f'"{text}"' in caught.value.message and "shard(dim)" in caught.value.expected


def _typed(value: Any) -> Any:
    """A value with the type of each part, so that True is not 1; lists and tuples are the same."""
    if isinstance(value, (list, tuple)):
        return [_typed(v) for v in value]
    if isinstance(value, dict):
        return {k: _typed(v) for k, v in sorted(value.items())}
    return type(value).__name__, value
