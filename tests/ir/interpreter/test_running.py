"""Inputs are cut, results joined; leaks of padding, wrong types and operations without a meaning show."""

from __future__ import annotations

import pytest
import torch
from stretto.ir.interpreter import Floats, InterpreterError, Padding, estimate, run
from stretto.ir.module import Module

from .texts import at, module

TP = (("tp", 2),)
UNEVEN = 'tensor<3x2xf32, {extents = array<i64: 5, 2>, tp = "shard(0)"}>'


def column_sum(masked: bool) -> Module:
    """The sum over a dim of 5 that two ranks share, with or without its padding masked."""
    mask = '"comm.mask"(%a) {axes = ["tp"], dim = 0 : i64, chunk = 3 : i64, extent = 5 : i64, fill = 0.0 : f64}'
    body = f"""
      %0 = {mask} : ({UNEVEN}) -> {UNEVEN}
      %1 = "aten.sum_dim_intlist"({"%0" if masked else "%a"}) {{dim = array<i64: 0>}}
        : ({UNEVEN}) -> tensor<2xf32, {{tp = "partial(sum)"}}>
      return %1 : tensor<2xf32, {{tp = "partial(sum)"}}>"""
    return module(f"%a: {UNEVEN}", 'tensor<2xf32, {tp = "partial(sum)"}>', body, mesh=TP)


def test_a_partial_result_is_reduced_and_masked_padding_is_not_in_it() -> None:
    given = torch.randn(5, 2)
    torch.testing.assert_close(run(column_sum(masked=True), [given])[0], given.sum(0))


def test_a_leak_of_padding_shows_as_nan_unless_padding_is_zero() -> None:
    given = torch.randn(5, 2)
    assert run(column_sum(masked=False), [given])[0].isnan().all()
    torch.testing.assert_close(run(column_sum(masked=False), [given], padding=Padding.ZERO)[0], given.sum(0))


def test_padding_of_integers_is_far_out_of_range_and_looks_up_nothing() -> None:
    ids = 'tensor<3xi64, {extents = array<i64: 5>, tp = "shard(0)"}>'
    out = 'tensor<3x2xf32, {extents = array<i64: 5, 2>, tp = "shard(0)"}>'
    body = f"""
      %0 = "aten.embedding_default"(%w, %i) : (tensor<4x2xf32>, {ids}) -> {out}
      %1 = "aten.sum_default"(%i) : ({ids}) -> tensor<i64, {{tp = "partial(sum)"}}>
      return %0, %1 : {out}, tensor<i64, {{tp = "partial(sum)"}}>"""
    looked = module(f"%w: tensor<4x2xf32>, %i: {ids}", f'{out}, tensor<i64, {{tp = "partial(sum)"}}>', body, mesh=TP)
    table, indices = torch.randn(4, 2), torch.tensor([3, 0, 1, 2, 2])
    orders, total = run(looked, [table, indices])
    assert torch.equal(orders, table[indices])
    assert total.item() > 1 << 50


def test_nested_shards_are_cut_and_joined_outermost_axis_first() -> None:
    held = 'tensor<2xf32, {extents = array<i64: 7>, dp = "shard(0)", tp = "shard(0)"}>'
    offset = '"comm.offset"() {axes = ["dp", "tp"], chunk = 100 : i64} : () -> tensor<i64>'
    body = f"""
      %0 = {offset}
      %1 = "aten.add_tensor"(%a, %0) : ({held}, tensor<i64>) -> {held}
      return %1 : {held}"""
    made = run(module(f"%a: {held}", held, body, mesh=(("dp", 2), ("tp", 2))), [torch.arange(7.0)])[0]
    assert made.tolist() == [0, 1, 102, 103, 204, 205, 306]


def test_replicas_that_differ_are_an_error_with_the_result_and_the_ranks() -> None:
    body = """
      %0 = "comm.offset"() {axes = ["tp"], chunk = 1 : i64} : () -> tensor<i64>
      return %0 : tensor<i64>"""
    text = module("", "tensor<i64>", body, mesh=TP).text()
    record = '-> (tensor<i64> {aten.argument = {kind = "gradient", name = "w", index = 0 : i64}})'
    named = Module.parse(text.replace("-> tensor<i64> {", f"{record} {{"))
    with pytest.raises(InterpreterError, match=r'(?s)E0659.*ranks 0 and 1 .* result "gradient w"'):
        run(named, [])


def test_a_function_that_is_called_twice_has_a_frame_for_each_call_and_may_communicate() -> None:
    t = "tensor<2xf32>"
    body = f"""
      %0 = func.call @layer(%a, %a) : ({t}, {t}) -> {t}
      %1 = func.call @layer(%0, %a) : ({t}, {t}) -> {t}
      return %1 : {t}
    }}
    func.func private @layer(%x: {t}, %y: {t}) -> {t} {{
      %0 = "comm.all_reduce"(%x) {{axes = ["tp"], reduce = "sum"}} : ({t}) -> {t}
      %1 = "aten.add_tensor"(%0, %y) : ({t}, {t}) -> {t}
      return %1 : {t}"""
    built = run(module(f"%a: {t}", t, body, mesh=TP), [torch.tensor([1.0, 2.0])])[0]
    assert built.tolist() == [7, 14]


def test_a_future_may_cross_the_boundary_of_a_function() -> None:
    t, future = "tensor<2xf32>", "!async.value<tensor<2xf32>>"
    body = f"""
      %0 = func.call @begin(%a) : ({t}) -> {future}
      %1 = "comm.wait"(%0) : ({future}) -> {t}
      return %1 : {t}
    }}
    func.func private @begin(%x: {t}) -> {future} {{
      %0 = "comm.all_reduce_start"(%x) {{axes = ["tp"], reduce = "sum"}} : ({t}) -> {future}
      return %0 : {future}"""
    assert run(module(f"%a: {t}", t, body, mesh=TP), [torch.ones(2)])[0].tolist() == [2, 2]


def test_float64_raises_casts_and_constants_and_divisions_of_integers() -> None:
    body = """
      %0 = "aten.u_to_copy_default"(%a) {dtype = f16} : (tensor<f32>) -> tensor<f16>
      %1 = "aten.u_to_copy_default"(%0) {dtype = f32} : (tensor<f16>) -> tensor<f32>
      %2 = "aten.scalar_tensor_default"() {s = 0.1 : f64, dtype = f32} : () -> tensor<f32>
      %3 = "aten.add_tensor"(%1, %2) : (tensor<f32>, tensor<f32>) -> tensor<f32>
      %4 = "aten.div_tensor"(%i, %j) : (tensor<i64>, tensor<i64>) -> tensor<f32>
      return %3, %4 : tensor<f32>, tensor<f32>"""
    cast = module("%a: tensor<f32>, %i: tensor<i64>, %j: tensor<i64>", "tensor<f32>, tensor<f32>", body, level="aten")
    third = torch.tensor(1 / 3, dtype=torch.float64)
    total, quotient = run(cast, [third, torch.tensor(1), torch.tensor(3)], floats=Floats.FLOAT64)
    assert total.item() == 1 / 3 + 0.1 and quotient.item() == 1 / 3
    assert torch.get_default_dtype() is torch.float32
    rounded, _ = run(cast, [third.float(), torch.tensor(1), torch.tensor(3)])
    assert abs(rounded.item() - total.item()) > 1e-5


def test_reshard_is_the_identity_on_global_tensors_and_undefined_on_local_ones() -> None:
    body = '%0 = "comm.reshard"(%a) : (tensor<4xf32>) -> tensor<4xf32, {tp = "shard(0)"}>\n'
    body += 'return %0 : tensor<4xf32, {tp = "shard(0)"}>'
    result = 'tensor<4xf32, {tp = "shard(0)"}>'
    given = torch.randn(4)
    assert torch.equal(run(module("%a: tensor<4xf32>", result, body, level="aten", mesh=TP), [given])[0], given)
    with pytest.raises(InterpreterError, match="E0652"):
        run(module("%a: tensor<4xf32>", result, body, mesh=TP), [given])


def unary(operation: str, result: str = "tensor<4xf32>") -> Module:
    """A module of level aten with one operation of %a."""
    body = f"%0 = {operation} : (tensor<4xf32>) -> {result} {at('head', 7)}\nreturn %0 : {result}"
    return module("%a: tensor<4xf32>", result, body, level="aten", mesh=TP)


@pytest.mark.parametrize(
    "operation",
    [
        '"comm.all_reduce"(%a) {axes = ["tp"], reduce = "sum"}',
        '"comm.shard"(%a) {axes = ["tp"], dim = 0 : i64, chunk = 4 : i64}',
        '"aten.rand_like_default"(%a)',
    ],
    ids=["collective", "shard", "random"],
)
def test_what_has_no_meaning_for_one_rank_is_refused(operation: str) -> None:
    with pytest.raises(InterpreterError, match="E0652"):
        run(unary(operation), [torch.ones(4)])


def test_an_operation_that_fails_is_named_with_its_place() -> None:
    with pytest.raises(InterpreterError, match=r'(?s)E0653.*"aten.reshape.default" \(head at model.py:7\) fails'):
        run(unary('"aten.reshape_default"(%a) {shape = array<i64: 3>}', "tensor<3xf32>"), [torch.ones(4)])


def test_a_result_of_another_type_than_stated_is_named_with_its_place() -> None:
    with pytest.raises(
        InterpreterError, match=r"(?s)E0654.*model.py:7.*\(4,\), but its type says torch.float32 \(2,\)"
    ):
        run(unary('"aten.neg_default"(%a)', "tensor<2xf32>"), [torch.ones(4)])


@pytest.mark.parametrize(
    "inputs", [[], [torch.ones(3)], [torch.ones(4, dtype=torch.int64)]], ids=["count", "shape", "dtype"]
)
def test_inputs_that_main_does_not_take_are_refused(inputs: list[torch.Tensor]) -> None:
    with pytest.raises(InterpreterError, match="E0651"):
        run(unary('"aten.neg_default"(%a)'), inputs)


def test_a_module_that_would_take_too_much_memory_is_refused_before_it_runs() -> None:
    huge = 'tensor<131072x1048576xf32, {tp = "shard(0)"}>'
    body = f'%0 = "aten.neg_default"(%a) : ({huge}) -> {huge}\nreturn %0 : {huge}'
    grown = module(f"%a: {huge}", huge, body, mesh=TP)
    with pytest.raises(InterpreterError) as caught:
        run(grown, [], floats=Floats.FLOAT64)
    text = str(caught.value)
    assert caught.value.code == "E0655"
    assert "about 6.0 TiB on 2 rank(s) (2.0 TiB each)" in text
    assert 'the largest argument is "argument 0"' in text
    assert "smaller --batch" in text and "--memory-cap 6.6TiB (in Python max_bytes)" in text


def test_the_estimate_counts_what_lives_at_once() -> None:
    t = "tensor<256xf32>"
    chain = "\n".join(f'%{i} = "aten.neg_default"({"%a" if i == 0 else f"%{i - 1}"}) : ({t}) -> {t}' for i in range(9))
    straight = module(f"%a: {t}", t, f"{chain}\nreturn %8 : {t}", mesh=TP)
    assert estimate(straight).rank_bytes == 2 * 1024
    assert estimate(straight, Floats.FLOAT64).total_bytes == 2 * 2 * 2048 + 2048
    with pytest.raises(InterpreterError, match="E0655"):
        run(straight, [torch.ones(256)], max_bytes=5 * 1024 - 1)
    run(straight, [torch.ones(256)], max_bytes=5 * 1024)


def test_a_module_without_main_or_with_foreign_operations_is_refused() -> None:
    with pytest.raises(InterpreterError, match=r'(?s)E0652.*no function "main"'):
        run(Module.parse("module {}"), [])
    foreign = "func.func @main() -> i32 { %0 = llvm.mlir.constant(1 : i32) : i32 return %0 : i32 }"
    with pytest.raises(InterpreterError, match=r"(?s)E0652.*llvm"):
        run(Module.parse(foreign), [])


def test_a_function_that_is_only_declared_or_calls_itself_cannot_be_run() -> None:
    declared = "func.func @main() { func.call @f() : () -> () return } func.func private @f()"
    with pytest.raises(InterpreterError, match=r'(?s)E0652.*"f" is called but'):
        run(Module.parse(declared), [])
    endless = (
        "func.func @main() { func.call @f() : () -> () return } func.func @f() { func.call @f() : () -> () return }"
    )
    with pytest.raises(InterpreterError, match=r'(?s)E0652.*"f" calls itself'):
        run(Module.parse(endless), [])
