"""The verifier refuses modules that break a rule of the IR, and says which and where."""

from __future__ import annotations

import pytest
from stretto.diagnostics import StrettoError
from stretto.ir.module import Module
from stretto.ir.verifier import verify

_HEAD = 'module attributes {comm.level = "comm", comm.mesh = [["dp", 2], ["tp", 4]]} {\n'
_IN_ORDER = '{dp = "shard(0)", tp = "shard(0)"}'
_NESTED = '{dp = "shard(0, 1)", tp = "shard(0, 0)"}'
_SUM = 'axes = ["tp"], reduce = "sum"'


_TWO = "tensor<4xf32>, tensor<8xf32>"
_FUTURES = "!async.value<tensor<4xf32>>, !async.value<tensor<8xf32>>"


def _bucket(operands: str, taken: str, given: str, dims: str) -> str:
    """A gather of several tensors over tp."""
    return f"""%t = builtin.unrealized_conversion_cast {operands} : {taken} to tuple<{taken}>
        %s = "comm.all_gather_coalesced"(%t) {{axes = ["tp"], dims = array<i64: {dims}>}}
            : (tuple<{taken}>) -> tuple<{given}>"""


def _module(arguments: str, body: str, level: str = "comm") -> Module:
    head = _HEAD.replace('level = "comm"', f'level = "{level}"')
    return Module.parse(f"{head}func.func @main({arguments}) {{\n{body}\nreturn }} }}")


def test_a_sound_module_passes() -> None:
    verify(
        _module(
            "%x: tensor<8x4xf32>",
            f'%f = "comm.all_reduce_start"(%x) {{{_SUM}}} : (tensor<8x4xf32>) -> !async.value<tensor<8x4xf32>>\n'
            '%y = "comm.wait"(%f) : (!async.value<tensor<8x4xf32>>) -> tensor<8x4xf32>\n'
            '%z = "comm.reduce_scatter"(%y) {axes = ["tp"], dim = 0, reduce = "sum"}'
            " : (tensor<8x4xf32>) -> tensor<2x4xf32>",
        )
    )


@pytest.mark.parametrize(
    ("counts", "bound", "says"),
    [
        ("2xi64", 9, r"send_counts must be torch.int64 \[4\], one for each rank of the group, not torch.int64 \[2\]"),
        ("4xi32", 9, r"must be torch.int64 \[4\].*not torch.int32 \[4\]"),
        ("4xi64", 8, r"must have shape \[8, 3\], not \[9, 3\]"),
        ("4xi64", 9, ""),
    ],
)
def test_an_exchange_of_rows_takes_a_count_for_each_rank_and_gives_its_bound(
    counts: str, bound: int, says: str
) -> None:
    made = _module(
        f"%x: tensor<8x3xf32>, %s: tensor<{counts}>, %r: tensor<{counts}>",
        f'%y = "comm.all_to_all_rows"(%x, %s, %r) {{axes = ["tp"], bound = {bound} : i64}} : '
        f"(tensor<8x3xf32>, tensor<{counts}>, tensor<{counts}>) -> tensor<9x3xf32>",
    )
    if not says:
        verify(made)
        return
    with pytest.raises(StrettoError, match=says):
        verify(made)


@pytest.mark.parametrize(
    ("arguments", "body", "says"),
    [
        ('%x: tensor<4xf32, {pp = "shard(0)"}>', "", 'the mesh has no axis "pp"'),
        ('%x: tensor<4xf32, {tp = "shard(1)"}>', "", "shards dim 1, which it does not have"),
        ("%x: tensor<4xf32, {extents = array<i64: 4, 4>}>", "", "1 dims and 2 extents"),
        (
            "%x: tensor<4xf32>",
            '%y = "comm.all_gather"(%x) {axes = ["tp"], dim = 0} : (tensor<4xf32>) -> tensor<8xf32>',
            r"must have shape \[16\], not \[8\]",
        ),
        (
            "%x: tensor<4xf32>",
            '%y = "comm.all_reduce"(%x) {axes = ["ep"], reduce = "sum"} : (tensor<4xf32>) -> tensor<4xf32>',
            'the mesh has no axis "ep"',
        ),
        (
            "%x: tensor<4xf32>",
            f'%f = "comm.all_reduce_start"(%x) {{{_SUM}}} : (tensor<4xf32>) -> !async.value<tensor<4xf32>>',
            "waited on exactly once, not 0 times",
        ),
        *(
            ("%x: tensor<4xf32>, %y: tensor<8xf32>, %h: tensor<4xf16>", _bucket(*case), says)
            for case, says in (
                (("%x, %h", "tensor<4xf32>, tensor<4xf16>", "tensor<16xf32>, tensor<16xf16>", "0, 0"), "of one dtype"),
                (("%x, %y", "tensor<4xf32>, tensor<8xf32>", "tensor<16xf32>, tensor<32xf32>", "0"), "but 1 dims"),
                (("%x, %y", "tensor<4xf32>, tensor<8xf32>", "tensor<16xf32>, tensor<8xf32>", "0, 0"), r"result 1 must"),
                (("%x, %y", "tensor<4xf32>, tensor<8xf32>", "tensor<16xf32>", "0, 0"), "2 tensors, but gives 1"),
                (("%x, %y", "tensor<4xf32>, tensor<8xf32>", "tensor<16xf32>, tensor<8xf32>", "0, 2"), "none of its"),
            )
        ),
        (
            "%x: tensor<4xf32>, %y: tensor<8xf32>",
            f"""%t = builtin.unrealized_conversion_cast %x, %y : tensor<4xf32>, tensor<8xf32> to tuple<{_TWO}>
            %s = "comm.all_reduce_coalesced_start"(%t) {{{_SUM}}} : (tuple<{_TWO}>) -> tuple<{_FUTURES}>
            %f:2 = builtin.unrealized_conversion_cast %s : tuple<{_FUTURES}> to {_FUTURES}
            %a = "comm.wait"(%f#0) : (!async.value<tensor<4xf32>>) -> tensor<4xf32>""",
            "waited on exactly once, not 0 times",
        ),
        (
            "%x: tensor<4xf32>",
            f'%f = "comm.all_reduce_start"(%x) {{{_SUM}}} : (tensor<4xf32>) -> !async.value<tensor<4xf32>>\n'
            '%y = "comm.wait"(%f) : (!async.value<tensor<4xf32>>) -> tensor<4xf32>\n'
            '%z = "comm.wait"(%f) : (!async.value<tensor<4xf32>>) -> tensor<4xf32>',
            "waited on exactly once, not 2 times",
        ),
        (
            f"%x: tensor<4xf32, {_NESTED}>, %y: tensor<4xf32, {_IN_ORDER}>",
            f'%z = "aten.mul_tensor"(%x, %y) : (tensor<4xf32, {_NESTED}>, tensor<4xf32, {_IN_ORDER}>)'
            f" -> tensor<4xf32, {_NESTED}>",
            'nest "dp" and "tp" in different orders',
        ),
        (
            '%x: tensor<4xf32, {comm.blocks = [array<i64: 0, 10, 6>], tp = "shard(0)"}>',
            "",
            r"has blocks \[10, 6\] in dim 0, which 4 ranks do not cut evenly",
        ),
        (
            '%x: tensor<4xf32, {comm.blocks = [array<i64: 0, 4, 4>], tp = "shard(0)"}>',
            "",
            r"has blocks \[4, 4\] in dim 0",
        ),
        ("%x: tensor<4xf32, {comm.blocks = [array<i64: 0, 2, 2>]}>", "", r"has blocks \[2, 2\] in dim 0"),
        ("%x: tensor<4xf32>", '%y = "comm.reshard"(%x) : (tensor<4xf32>) -> tensor<4xf32>', "must be a collective"),
        (
            "%x: tensor<4xf32>",
            '%y = "comm.all_gather"(%x) {axes = ["tp"]} : (tensor<4xf32>) -> tensor<16xf32>',
            'the constant "dim" of type int is missing',
        ),
        (
            "%x: tensor<4xf32>",
            '%y = "comm.all_gather"(%x) {axes = ["tp"], dim = "0"} : (tensor<4xf32>) -> tensor<16xf32>',
            'the constant "dim" must be of type int',
        ),
    ],
)
def test_a_broken_rule_is_named(arguments: str, body: str, says: str) -> None:
    with pytest.raises(StrettoError, match=says) as caught:
        verify(_module(arguments, body))
    assert caught.value.code == "E0505"


def test_an_operation_is_looked_at_though_one_before_it_is_sound() -> None:
    sound = f'%a = "comm.all_reduce"(%x) {{{_SUM}}} : (tensor<8x4xf32>) -> tensor<8x4xf32>\n'
    unsound = sound.replace("%a", "%b").replace("tp", "pp")
    with pytest.raises(StrettoError, match='the mesh has no axis "pp"'):
        verify(_module("%x: tensor<8x4xf32>", sound + sound.replace("%a", "%c") + unsound))


def test_reshard_is_valid_at_level_aten() -> None:
    verify(_module("%x: tensor<4xf32>", '%y = "comm.reshard"(%x) : (tensor<4xf32>) -> tensor<4xf32>', "aten"))


def test_what_mlir_refuses_is_refused() -> None:
    module = _module("%x: tensor<4xf32>", "")
    module.functions()["main"].attributes["function_type"] = (
        Module.parse("func.func @f() { return }").functions()["f"].attributes["function_type"]
    )
    with pytest.raises(StrettoError) as caught:
        verify(module)
    assert caught.value.code == "E0506"


_F = "!async.value<tensor<4xf32>>"


@pytest.mark.parametrize(
    ("functions", "says"),
    [
        (f"func.func @f(%f: {_F}) {{ return }}", "argument 0, a future, must be waited on exactly once, not 0 times"),
        (
            f"""func.func @f(%f: {_F}) -> (tensor<4xf32>, {_F}) {{
                %x = "comm.wait"(%f) : ({_F}) -> tensor<4xf32>
                return %x, %f : tensor<4xf32>, {_F} }}""",
            "argument 0, a future, must be waited on exactly once, not 2 times",
        ),
        (
            f"""func.func @f(%f: {_F}) -> {_F} {{
                %g = func.call @h(%f) : ({_F}) -> {_F}
                return %f : {_F} }}
            func.func @h(%f: {_F}) -> {_F} {{ return %f : {_F} }}""",
            "not 2 times",
        ),
        (
            f"""func.func @f(%f: {_F}) {{
                %g = func.call @h(%f) : ({_F}) -> {_F}
                return }}
            func.func @h(%f: {_F}) -> {_F} {{ return %f : {_F} }}""",
            "its future must be waited on exactly once, not 0 times",
        ),
        (
            f"""func.func @f(%f: {_F}) -> tensor<4xf32> {{
                %x = "aten.neg_default"(%f) : ({_F}) -> tensor<4xf32>
                return %x : tensor<4xf32> }}""",
            'a future, goes to "aten.neg_default", which takes tensors: wait for it before',
        ),
        (
            """func.func @f(%x: tensor<4xf32>) -> tensor<4xf32> {
                %y = "comm.wait"(%x) : (tensor<4xf32>) -> tensor<4xf32>
                return %y : tensor<4xf32> }""",
            "which is not a future",
        ),
        (f"func.func @main(%f: {_F}) -> {_F} {{ return %f : {_F} }}", 'the entry function "main" takes a future'),
        (
            f"""func.func @main(%x: tensor<4xf32>) -> {_F} {{
                %f = "comm.all_reduce_start"(%x) {{{_SUM}}} : (tensor<4xf32>) -> {_F}
                return %f : {_F} }}""",
            'the entry function "main" gives a future',
        ),
    ],
)
def test_a_future_goes_through_calls_and_returns_once_to_its_wait(functions: str, says: str) -> None:
    with pytest.raises(StrettoError, match=says):
        verify(Module.parse(_HEAD + functions + "}"))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('%y = "aten.neg_default"(%x) {lane = "Aux 1"} : (tensor<4xf32>) -> tensor<4xf32>', "'Aux 1' is not a lane"),
        ('%y = "aten.neg_default"(%x) {lane = 1 : i64} : (tensor<4xf32>) -> tensor<4xf32>', "1 is not a lane"),
        ('%y = func.call @f(%x) {lane = "aux"} : (tensor<4xf32>) -> tensor<4xf32>', "a call has no lane"),
    ],
)
def test_a_lane_has_a_name_and_a_call_has_none(body: str, says: str) -> None:
    head = _HEAD + "func.func private @f(%x: tensor<4xf32>) -> tensor<4xf32> { return %x : tensor<4xf32> }\n"
    with pytest.raises(StrettoError, match=says):
        verify(Module.parse(f"{head}func.func @main(%x: tensor<4xf32>) {{\n{body}\nreturn }} }}"))
