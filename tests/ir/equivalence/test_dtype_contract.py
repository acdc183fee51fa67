"""The contract of dtypes: ops keep those of their line, gradients are reduced in the dtype of their record."""

from __future__ import annotations

import pytest
from stretto.ir.equivalence.dtype_contract import dtype_problems
from stretto.ir.interpreter.code import decode
from stretto.ir.module import Module

STEP = """module attributes {comm.level = "comm", comm.mesh = [["dp", 2]]} {
func.func @main(%x: tensor<4xbf16, {dp = "shard(0)"}> {aten.argument = {kind = "input", name = "x"}},
                %w: tensor<4xbf16> {aten.argument = {kind = "parameter", name = "w"}})
    -> (tensor<4xf32> {aten.argument = {kind = "gradient", name = "w", reduce = "float32"}}) {
  %0 = "aten.mul_tensor"(%x, %w) : (tensor<4xbf16, {dp = "shard(0)"}>, tensor<4xbf16>)
       -> tensor<4xbf16, {dp = "partial(sum)"}> loc("model.py":3:0)
  %1 = "aten.u_to_copy_default"(%0) {dtype = f32} : (tensor<4xbf16, {dp = "partial(sum)"}>)
       -> tensor<4xf32, {dp = "partial(sum)"}> loc("model.py":4:0)
  %2 = "comm.all_reduce"(%1) {axes = ["dp"], reduce = "sum"} : (tensor<4xf32, {dp = "partial(sum)"}>)
       -> tensor<4xf32> loc("model.py":4:0)
  return %2 : tensor<4xf32>
}
}
"""
SHORT = STEP.replace(
    """  %1 = "aten.u_to_copy_default"(%0) {dtype = f32} : (tensor<4xbf16, {dp = "partial(sum)"}>)
       -> tensor<4xf32, {dp = "partial(sum)"}> loc("model.py":4:0)
  %2 = "comm.all_reduce"(%1) {axes = ["dp"], reduce = "sum"} : (tensor<4xf32, {dp = "partial(sum)"}>)
       -> tensor<4xf32> loc("model.py":4:0)
""",
    """  %1 = "comm.all_reduce"(%0) {axes = ["dp"], reduce = "sum"} : (tensor<4xbf16, {dp = "partial(sum)"}>)
       -> tensor<4xbf16> loc("model.py":4:0)
  %2 = "aten.u_to_copy_default"(%1) {dtype = f32} : (tensor<4xbf16>) -> tensor<4xf32> loc("model.py":4:0)
""",
)
"""The gradient is reduced before it is cast."""
CALLED = SHORT.replace("@main", "@step").replace(
    "\n}\n}\n",
    """
}
func.func @main(%x: tensor<4xbf16, {dp = "shard(0)"}> {aten.argument = {kind = "input", name = "x"}},
                %w: tensor<4xbf16> {aten.argument = {kind = "parameter", name = "w"}})
    -> (tensor<4xf32> {aten.argument = {kind = "gradient", name = "w", reduce = "float32"}}) {
  %0 = func.call @step(%x, %w) : (tensor<4xbf16, {dp = "shard(0)"}>, tensor<4xbf16>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}
}
""",
)
"""The same in a function that `main` calls."""
PROMOTED = STEP.replace(
    '%0 = "aten.mul_tensor"(%x, %w) : (tensor<4xbf16, {dp = "shard(0)"}>, tensor<4xbf16>)',
    """%a = "aten.u_to_copy_default"(%w) {dtype = f32} : (tensor<4xbf16>) -> tensor<4xf32>
  %0 = "aten.mul_tensor"(%x, %a) : (tensor<4xbf16, {dp = "shard(0)"}>, tensor<4xf32>)""",
)
"""An op computes with a longer operand."""


LONGER = STEP.replace(
    """  %0 = "aten.mul_tensor"(%x, %w) : (tensor<4xbf16, {dp = "shard(0)"}>, tensor<4xbf16>)
       -> tensor<4xbf16, {dp = "partial(sum)"}> loc("model.py":3:0)
  %1 = "aten.u_to_copy_default"(%0) {dtype = f32} : (tensor<4xbf16, {dp = "partial(sum)"}>)
       -> tensor<4xf32, {dp = "partial(sum)"}> loc("model.py":4:0)
""",
    """  %a = "aten.u_to_copy_default"(%w) {dtype = f32} : (tensor<4xbf16>) -> tensor<4xf32>
  %b = "aten.u_to_copy_default"(%x) {dtype = f32} : (tensor<4xbf16, {dp = "shard(0)"}>)
       -> tensor<4xf32, {dp = "shard(0)"}>
  %1 = "aten.mul_tensor"(%b, %a) : (tensor<4xf32, {dp = "shard(0)"}>, tensor<4xf32>)
       -> tensor<4xf32, {dp = "partial(sum)"}> loc("model.py":3:0)
""",
)
"""An op computes in a longer dtype."""


def test_an_op_may_compute_in_a_longer_dtype_than_before() -> None:
    assert messages(STEP, LONGER) == []
    assert messages(LONGER, STEP)[0].startswith("it computes bf")


def messages(before: str, after: str) -> list[str]:
    return [problem.message for problem in dtype_problems(decode(Module.parse(before)), decode(Module.parse(after)))]


def test_a_module_keeps_its_own_contract() -> None:
    assert messages(STEP, STEP) == []


@pytest.mark.parametrize("text", [SHORT, CALLED], ids=["main", "called"])
def test_a_gradient_that_is_reduced_in_another_dtype_than_its_record_says(text: str) -> None:
    assert messages(STEP, text)[-1] == 'gradient "w" is reduced in bfloat16, not in float32'
    assert messages(STEP.replace("float32", "bfloat16"), text.replace("float32", "bfloat16")) == []


def test_an_op_that_computes_in_other_dtypes_than_before() -> None:
    assert messages(STEP, PROMOTED) == [
        "it computes bfloat16 of bfloat16, float32, and before the pass bfloat16 of bfloat16"
    ]


def loss(cast: str, dtype: str) -> str:
    """A sum over ranks, in a dtype, of a value in float32 that `cast` may change."""
    return f"""module attributes {{comm.level = "comm", comm.mesh = [["dp", 2]]}} {{
func.func @main(%x: tensor<4xf32, {{dp = "partial(sum)"}}>) -> tensor<4x{dtype}> {{
  %0 = "aten.neg_default"(%x) : (tensor<4xf32, {{dp = "partial(sum)"}}>) -> tensor<4xf32, {{dp = "partial(sum)"}}>
  {cast}
  %2 = "comm.all_reduce"(%{1 if cast else 0}) {{axes = ["dp"], reduce = "sum"}}
       : (tensor<4x{dtype}, {{dp = "partial(sum)"}}>) -> tensor<4x{dtype}>
  return %2 : tensor<4x{dtype}>
}}
}}
"""


def test_a_sum_over_ranks_of_what_the_pass_casts_to_a_shorter_dtype() -> None:
    partial = 'tensor<4x{}, {{dp = "partial(sum)"}}>'
    cast = f'%1 = "aten.u_to_copy_default"(%0) {{dtype = f16}} : ({partial.format("f32")}) -> {partial.format("f16")}'
    before, after = loss("", "f32"), loss(cast, "f16")
    assert messages(before, after) == ["it reduces a value that the pass casts from float32 to float16"]
    assert messages(after, after) == []
