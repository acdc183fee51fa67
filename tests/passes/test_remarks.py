"""Every pass says what it rewrote, and what it declined and why."""

from __future__ import annotations

import pytest
from stretto.ir.module import Module
from stretto.passes.base import Pass, Remark, RemarkKind
from stretto.passes.pipeline_text import parse_pipeline
from stretto.passes.registry import TABLE

from .test_text import CASES, FOLDER


def remarks_of(pipeline: str, text: str, kind: RemarkKind) -> list[Remark]:
    """What the passes of a pipeline say."""
    module = Module.parse(text)
    remarks: list[Remark] = []
    for step in parse_pipeline(pipeline.replace("%S", str(FOLDER))):
        if isinstance(step, Pass):
            remarks += step.run(module).remarks
    return [remark for remark in remarks if remark.kind is kind]


CHECK_ONLY = {"check-batch"}


@pytest.mark.parametrize("name", [name for name in TABLE if name not in CHECK_ONLY])
def test_a_pass_that_rewrites_says_what(name: str) -> None:
    pipeline, text = next(case[1:] for case in CASES if case[0] == f"{name.replace('-', '_')}-0")
    applied = remarks_of(pipeline, text, RemarkKind.APPLIED)
    assert {remark.pass_name for remark in applied} == {name}


LAYER = '  %{to} = "aten.{op}_default"(%{of}) : (tensor<4xf32>) -> tensor<4xf32> loc("layers.{n}.act")\n'


def layers(*ops: str) -> str:
    """A chain of layers, each of one operation."""
    names = ["x", *(f"v{n}" for n in range(len(ops)))]
    lines = "".join(LAYER.format(to=names[n + 1], of=names[n], op=op, n=n) for n, op in enumerate(ops))
    head, end = "func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> {", f"  return %{names[-1]} : tensor<4xf32>"
    return f"{head}\n{lines}{end}\n}}"


def test_layers_that_are_like_no_other_are_told_with_the_first_difference() -> None:
    (missed,) = remarks_of("fold-layers", layers("relu", "relu", "exp", "tanh"), RemarkKind.MISSED)
    assert missed.message == (
        'forward layers 2, 3 of "layers" are like no other: "aten.exp.default" stands where "layers.0" has '
        '"aten.relu.default"'
    )
    assert missed.origin.module_path == "layers.2.act"


SORTED_ROWS = """
module attributes {{comm.level = "aten", comm.mesh = [["cp", 2]]}} {{
func.func @main(
  %x: tensor<2x4x3xf32, {{{placed}}}> {{aten.argument = {{kind = "input", name = "x"}}}}
) -> tensor<8x3xf32> {{
  %0 = "aten.reshape_default"(%x) {{shape = array<i64: 8, 3>}} : (tensor<2x4x3xf32, {{{placed}}}>) -> tensor<8x3xf32>
  %1 = "aten.cumsum_default"(%0) {{dim = {dim} : i64}} : (tensor<8x3xf32>) -> tensor<8x3xf32> loc("head")
  return %1 : tensor<8x3xf32>
}}
}}
"""


def test_an_operation_along_merged_rows_is_told_where_another_dim_than_their_first_is_sharded() -> None:
    text = SORTED_ROWS.format(placed='cp = "shard(1)"', dim=0)
    (missed,) = remarks_of("keep-dims-apart", text, RemarkKind.MISSED)
    assert missed.message == (
        "aten.cumsum.default takes 2 x 4 rows as one dim: of these, ranks may shard the first dim alone"
    )
    assert missed.origin.module_path == "head"


@pytest.mark.parametrize(("placed", "dim"), [("shard(0)", 0), ("shard(1)", 1)])
def test_rows_that_need_no_gather_leave_nothing_to_tell(placed: str, dim: int) -> None:
    text = SORTED_ROWS.format(placed=f'cp = "{placed}"', dim=dim)
    assert remarks_of("keep-dims-apart", text, RemarkKind.MISSED) == []


def test_equal_layers_leave_nothing_to_decline() -> None:
    assert remarks_of("fold-layers", layers("relu", "relu"), RemarkKind.MISSED) == []


CONSTANT = """
func.func @main(%x: tensor<4xf32>, %y: tensor<2xf32>) -> (tensor<4xf32>, tensor<2xf32>) {
  %0 = "aten.mul_scalar"(%x) {other = 2.0 : f64} : (tensor<4xf32>) -> tensor<4xf32> loc("layers.0")
  %1 = "aten.mul_scalar"(%0) {other = 3.0 : f64} : (tensor<4xf32>) -> tensor<4xf32> loc("layers.1")
  %2 = "aten.exp_default"(%x) : (tensor<4xf32>) -> tensor<4xf32> loc("h.0")
  %3 = "aten.exp_default"(%y) : (tensor<2xf32>) -> tensor<2xf32> loc("h.1")
  return %1, %3 : tensor<4xf32>, tensor<2xf32>
}
"""


def test_constants_and_shapes_that_differ_are_named() -> None:
    constants, shapes = remarks_of("fold-layers", CONSTANT, RemarkKind.MISSED)
    assert constants.message.endswith('"aten.mul.Scalar" has other constants than in "layers.1"')
    assert shapes.message.endswith('"aten.exp.default" has other results than in "h.1"')


EXPOSED = """
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
  func.func @main(%a: tensor<4xf32>, %b: tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>) {
    %0 = "comm.all_reduce"(%a) {axes = ["tp"], reduce = "sum"} : (tensor<4xf32>) -> tensor<4xf32> loc("up")
    %1 = "aten.neg_default"(%0) : (tensor<4xf32>) -> tensor<4xf32>
    %2 = "comm.all_reduce"(%1) {axes = ["tp"], reduce = "sum"} : (tensor<4xf32>) -> tensor<4xf32> loc("down")
    %3 = "aten.exp_default"(%b) : (tensor<4xf32>) -> tensor<4xf32>
    %4 = "aten.add_tensor"(%2, %3) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
    return %4, %1 : tensor<4xf32>, tensor<4xf32>
  }
}
"""


def test_a_collective_that_nothing_hides_is_told_and_one_that_work_hides_is_not() -> None:
    (missed,) = remarks_of("start-collectives", EXPOSED, RemarkKind.MISSED)
    (applied,) = remarks_of("start-collectives", EXPOSED, RemarkKind.APPLIED)
    assert (missed.origin.module_path, applied.origin.module_path) == ("up", "down")
    assert missed.message.startswith("all_reduce over tp stays exposed: ")


def test_a_mean_of_nothing_is_declined() -> None:
    text = """
func.func @main(%x: tensor<0x3xf32>) -> tensor<f32> {
  %0 = "aten.mean_default"(%x) : (tensor<0x3xf32>) -> tensor<f32>
  return %0 : tensor<f32>
}
"""
    (missed,) = remarks_of("split-means", text, RemarkKind.MISSED)
    assert "no elements" in missed.message
