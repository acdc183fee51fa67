"""Types, placements, attributes and module texts: what is written is read back, what is wrong is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stretto.diagnostics import StrettoError
from stretto.ir.attributes import from_attribute, to_attribute
from stretto.ir.bindings import mlir
from stretto.ir.dialects.context import context
from stretto.ir.dialects.schemas import by_mlir_name, definitions
from stretto.ir.module import Module
from stretto.ir.placement import Partial, Placement, Reduce, Replicate, Shard
from stretto.ir.types import TensorType, dtype_text, from_mlir, to_mlir

MESH = (("dp", 2), ("pp", 3), ("tp", 4))
DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


@st.composite
def _types(draw: st.DrawFn) -> TensorType:
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    on_axis = st.one_of(
        st.just(Replicate()),
        st.integers(0, len(shape) - 1).map(Shard),
        st.sampled_from(list(Reduce)).map(Partial),
    )
    by_axis = {axis: draw(on_axis) for axis, _ in MESH}
    order = Placement((tuple(draw(st.permutations([axis for axis, _ in MESH]))),))
    placement = Placement.of(len(shape), by_axis, MESH, [order])
    extents = draw(st.one_of(st.none(), st.just(tuple(n + 1 for n in shape))))
    return TensorType(draw(st.sampled_from(DTYPES)), shape, (), extents).placed(placement, MESH)


@settings(max_examples=60, deadline=None)
@given(_types())
def test_a_type_is_read_back_as_it_was_written(type_: TensorType) -> None:
    assert from_mlir(to_mlir(type_)) == type_
    assert type_.placed(type_.placement_on(MESH), MESH) == type_
    assert from_mlir(mlir.Type.parse(str(to_mlir(type_)), context())) == type_


@pytest.mark.parametrize(
    "value",
    [
        True,
        False,
        0,
        -7,
        1.5,
        math.inf,
        -math.inf,
        "text",
        torch.bfloat16,
        [1, 2],
        [],
        [True, False],
        [0.5, 1.0],
        [[1], "a"],
    ],
)
def test_a_constant_is_read_back_as_it_was_written(value: object) -> None:
    assert from_attribute(to_attribute(value)) == value  # type: ignore[arg-type]
    assert type(from_attribute(to_attribute(value))) is type(value)  # type: ignore[arg-type]


def test_nan_is_read_back_as_nan() -> None:
    assert math.isnan(from_attribute(to_attribute(math.nan)))


def test_every_operation_has_an_mlir_name_of_its_own() -> None:
    assert len(by_mlir_name()) == len(definitions())
    assert by_mlir_name()["aten.u_softmax_default"].name == "aten._softmax.default"


def test_a_dtype_that_no_kernel_here_knows_is_refused() -> None:
    with pytest.raises(StrettoError, match="complex32") as caught:
        dtype_text(torch.complex32)
    assert caught.value.code == "E0502"


def test_a_text_that_is_no_placement_is_refused() -> None:
    with pytest.raises(StrettoError, match="columns") as caught:
        from_mlir(mlir.Type.parse('tensor<4xf32, {tp = "columns"}>', context()))
    assert caught.value.code == "E0503"


@pytest.mark.parametrize(
    "levels", ['dp = "shard(0, 1)"', 'dp = "shard(0, 0)", tp = "shard(0, 0)"', 'dp = "shard(0, 0)", tp = "shard(0)"']
)
def test_levels_that_give_no_order_are_refused(levels: str) -> None:
    with pytest.raises(StrettoError, match=r"the axes of dim 0 have no order: dp = ") as caught:
        from_mlir(mlir.Type.parse(f"tensor<4xf32, {{{levels}}}>", context()))
    assert caught.value.code == "E0503"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("this is no module", 1, "unknown"),
        (
            'module {\n  func.func @main() {\n    "aten.nope"() : () -> ()\n    return\n  }\n}',
            3,
            "unregistered operation",
        ),
        ("module {\n  func.func @main() {\n", 2, "expected"),
    ],
)
def test_a_text_that_is_no_module_is_refused_at_its_line(text: str, line: int, says: str) -> None:
    with pytest.raises(StrettoError, match=says) as caught:
        Module.parse(text, "some.mlir")
    assert caught.value.code == "E0504"
    assert caught.value.span is not None
    assert (caught.value.span.file, caught.value.span.line) == ("some.mlir", line)
