"""Two modules compared on random inputs: equal, different, or not checked; and what may stand in integer inputs."""

from __future__ import annotations

import pytest
import torch
from stretto.ir.equivalence import compare, random_inputs
from stretto.ir.equivalence.compare import Verdict
from stretto.ir.equivalence.integer_ranges import IntegerRange
from stretto.ir.equivalence.random_inputs import infer_ranges
from stretto.ir.interpreter import InterpreterError
from stretto.ir.module import Module, entry, set_argument_records

from ..interpreter.texts import module

T = "tensor<4x6xf32>"


def unary(operation: str) -> Module:
    """A module of level aten with one operation of %a."""
    return module(f"%a: {T}", T, f"%0 = {operation} : ({T}) -> {T}\nreturn %0 : {T}", level="aten")


def scaled(factor: float) -> Module:
    return unary(f'"aten.mul_scalar"(%a) {{other = {factor:e} : f64}}')


def test_equal_modules_are_equal_and_a_factor_shows() -> None:
    assert compare(scaled(2), scaled(2)).is_equal
    comparison = compare(scaled(2), scaled(2.0002))
    assert not comparison.is_equal and comparison.error == pytest.approx(1e-4)
    [result] = comparison.of(Verdict.DIFFERENT)
    assert result.name == "number 0" and "different (0.0001)" in str(result)


def test_the_tolerance_says_what_is_equal() -> None:
    assert compare(scaled(2), scaled(2.0002), tolerance=1e-3).is_equal


def test_what_is_all_zero_is_not_checked_unless_it_becomes_something() -> None:
    comparison = compare(scaled(0), scaled(0))
    assert not comparison.is_equal and comparison.of(Verdict.NOT_CHECKED)
    assert compare(scaled(0), scaled(1)).of(Verdict.DIFFERENT)


def test_what_is_nan_is_not_checked_and_a_nan_in_one_alone_is_a_difference() -> None:
    log = unary('"aten.log_default"(%a)')
    given = {"argument 0": -torch.ones(4, 6)}
    assert compare(log, log, values=given).of(Verdict.NOT_CHECKED)
    assert compare(scaled(1), log, values=given).error == float("inf")
    assert compare(log, scaled(1), values=given).of(Verdict.DIFFERENT)


CANCELLED = f"""%1 = "aten.mul_scalar"(%a) {{other = 3.3 : f64}} : ({T}) -> {T}
%2 = "aten.mul_scalar"(%a) {{other = 1.1 : f64}} : ({T}) -> {T}
%3 = "aten.mul_scalar"(%2) {{other = 3.0 : f64}} : ({T}) -> {T}"""


def cancelled(rest: str, result: str) -> Module:
    """The rounding that is left of 3.3 a - 3 (1.1 a) in %d, and what is made of it."""
    difference = f'%d = "aten.sub_tensor"(%1, %3) : ({T}, {T}) -> {T}'
    return module(f"%a: {T}", T, f"{CANCELLED}\n{difference}\n{rest}\nreturn %{result} : {T}", level="aten")


def test_what_is_nothing_but_rounding_is_not_checked_unless_it_becomes_something() -> None:
    twice = f'%e = "aten.mul_scalar"(%d) {{other = 2.0 : f64}} : ({T}) -> {T}'
    rounding, doubled = cancelled("", "d"), cancelled(twice, "e")
    comparison = compare(rounding, doubled)
    assert comparison.of(Verdict.NOT_CHECKED) and not comparison.is_equal and comparison.error == 0
    assert compare(rounding, scaled(1e-9)).of(Verdict.DIFFERENT)
    assert compare(scaled(1e-9), rounding).of(Verdict.DIFFERENT)


def test_a_module_is_compared_with_what_its_ranks_compute_together() -> None:
    before = module(f"%a: {T}", "tensor<6xf32>", f"""
      %0 = "aten.sum_dim_intlist"(%a) {{dim = array<i64: 0>}} : ({T}) -> tensor<6xf32>
      return %0 : tensor<6xf32>""", level="aten")  # fmt: skip
    local_values = 'tensor<2x6xf32, {dp = "shard(0)"}>'
    after = """
      %%0 = "aten.sum_dim_intlist"(%%a) {dim = array<i64: 0>} : (%s) -> tensor<6xf32>
      %%1 = "comm.all_reduce"(%%0) {axes = ["%s"], reduce = "sum"} : (tensor<6xf32>) -> tensor<6xf32>
      return %%1 : tensor<6xf32>"""
    assert compare(before, module(f"%a: {local_values}", "tensor<6xf32>", after % (local_values, "dp"))).is_equal
    with pytest.raises(InterpreterError, match="E0659"):
        compare(before, module(f"%a: {local_values}", "tensor<6xf32>", after % (local_values, "tp")))


def test_modules_with_other_arguments_or_results_are_not_compared() -> None:
    other = module("%a: tensor<4xf32>", "tensor<4xf32>", "return %a : tensor<4xf32>", level="aten")
    with pytest.raises(InterpreterError, match=r"(?s)E0660.*arguments"):
        compare(scaled(1), other)
    with pytest.raises(InterpreterError, match=r"(?s)E0660.*results"):
        compare(scaled(1), module(f"%a: {T}", "", "return", level="aten"))


def lookup(body: str, arguments: str = "%w: tensor<9x2xf32>, %i: tensor<4x5xi64>") -> Module:
    """A module with an integer input, named "ids"."""
    built = module(arguments, "", f"{body}\nreturn", level="aten")
    more = [{"name": "x"}] * (len(list(entry(built.functions()["main"]).arguments)) - 2)
    set_argument_records(built.functions()["main"], [{"name": "w"}, {"name": "ids", "kind": "input"}, *more])
    return built


EMBED = '%e = "aten.embedding_default"(%w, %j) : (tensor<9x2xf32>, tensor<20xi64>) -> tensor<20x2xf32>'
FLATTEN = '%j = "aten.reshape_default"(%i) {shape = array<i64: 20>} : (tensor<4x5xi64>) -> tensor<20xi64>'


def test_an_embedding_implies_the_range_of_its_indices_through_reshapes_and_calls() -> None:
    assert infer_ranges(lookup(f"{FLATTEN}\n{EMBED}")) == {"ids": IntegerRange(9)}
    called = f"""
      func.call @look(%w, %i) : (tensor<9x2xf32>, tensor<4x5xi64>) -> ()
      return
      }} func.func private @look(%w: tensor<9x2xf32>, %i: tensor<4x5xi64>) {{
      {FLATTEN}
      {EMBED}"""
    assert infer_ranges(lookup(called)) == {"ids": IntegerRange(9)}


def test_an_embedding_implies_the_range_of_indices_that_were_put_in_another_order() -> None:
    part = "tensor<2x5xi64>"
    slices = "\n".join(
        f'%{name} = "aten.slice_tensor"(%i) {{dim = 0 : i64, end = {start + 2} : i64, start = {start} : i64, '
        f"step = 1 : i64}} : (tensor<4x5xi64>) -> {part}"
        for name, start in (("late", 2), ("early", 0))
    )
    joined = f"""%t = builtin.unrealized_conversion_cast %late, %early : {part}, {part} to tuple<{part}, {part}>
      %c = "aten.cat_default"(%t) {{dim = 0 : i64}} : (tuple<{part}, {part}>) -> tensor<4x5xi64>"""
    built = lookup(f"{slices}\n{joined}\n{FLATTEN.replace('%i', '%c')}\n{EMBED}")
    assert infer_ranges(built) == {"ids": IntegerRange(9)}


def test_a_loss_implies_the_range_of_its_labels_and_some_are_ignored() -> None:
    loss = f"""{FLATTEN}
      %t, %c, %l = "nn.cross_entropy"(%w, %j) {{ignore_index = -100 : i64}}
        : (tensor<20x7xf32>, tensor<20xi64>) -> (tensor<f32>, tensor<f32>, tensor<20xf32>)"""
    built = lookup(loss, "%w: tensor<20x7xf32>, %i: tensor<4x5xi64>")
    assert infer_ranges(built) == {"ids": IntegerRange(7, -100)}
    labels = random_inputs(built, seed=3)[1]
    assert (labels == -100).any() and (labels >= 0).any() and int(labels.max()) < 7


@pytest.mark.parametrize(("guarded", "ignored"), [(False, None), (True, -100)])
def test_labels_that_are_indices_too_are_ignored_only_where_a_guard_replaces_them(
    guarded: bool, ignored: int | None
) -> None:
    """As in a language model whose labels are its tokens."""
    index = "%g" if guarded else "%j"
    clamp = '%g = "aten.clamp_default"(%j) {min = 0 : i64} : (tensor<20xi64>) -> tensor<20xi64>' if guarded else ""
    body = f"""{FLATTEN}
      {clamp}
      {EMBED.replace("%j", index)}
      %t, %c, %l = "nn.cross_entropy"(%x, %j) {{ignore_index = -100 : i64}}
        : (tensor<20x9xf32>, tensor<20xi64>) -> (tensor<f32>, tensor<f32>, tensor<20xf32>)"""
    built = lookup(body, "%w: tensor<9x2xf32>, %i: tensor<4x5xi64>, %x: tensor<20x9xf32>")
    assert infer_ranges(built) == {"ids": IntegerRange(9, ignored)}


def test_an_integer_input_without_a_range_is_an_error_unless_one_is_given() -> None:
    built = lookup(FLATTEN)
    with pytest.raises(InterpreterError, match=r'(?s)E0661.*"ids"'):
        random_inputs(built, seed=0)
    assert int(random_inputs(built, seed=0, ranges={"ids": IntegerRange(3)})[1].max()) <= 2


def test_inputs_depend_on_the_seed_and_nothing_else_and_hold_no_zero() -> None:
    once, again, other = (random_inputs(scaled(1), seed) for seed in (1, 1, 2))
    assert torch.equal(once[0], again[0]) and not torch.equal(once[0], other[0])
    assert once[0].dtype is torch.float32 and bool((once[0] != 0).all())


@pytest.mark.parametrize(
    ("held", "found"),
    [
        ("array<i64: 2, 40>", IntegerRange(9, low=2)),
        ("array<i64: 0, 3>", IntegerRange(3)),
        ("array<i64: 20, 30>", IntegerRange(9)),
        ("array<i64: 3, 3>", IntegerRange(9)),
        ('"none"', IntegerRange(9)),
    ],
)
def test_a_recorded_range_narrows_that_of_the_uses_but_never_to_nothing(held: str, found: IntegerRange) -> None:
    record = f'{{aten.argument = {{kind = "buffer", name = "ids", range = {held}}}}}'
    built = module(f"%w: tensor<9x2xf32>, %j: tensor<20xi64> {record}", "", f"{EMBED}\nreturn", level="aten")
    assert infer_ranges(Module.parse(built.text())) == {"ids": found}
