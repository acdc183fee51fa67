"""The verifier of pipelined modules names each violation."""

from __future__ import annotations

import pytest
from stretto.diagnostics import StrettoError
from stretto.ir.module import Module, build_function, finish_function
from stretto.ir.pipelined_module import MICROBATCH, set_pipeline_axis
from stretto.ir.source_text import read_module
from stretto.ir.verifier import verify

from .interpreter.staged import FIRST, SEGMENTS, in_order, in_segments

OFFSET = '%o = "comm.offset"() {axes = ["dp", "microbatch"], chunk = 1 : i64} : () -> tensor<i64>'


def refused(module: Module) -> str:
    with pytest.raises(StrettoError) as caught:
        verify(module)
    assert caught.value.code == "E0505"
    return caught.value.message


def changed(old: str, new: str, count: int = -1) -> Module:
    """The module in order with a piece of its text replaced."""
    text = in_order().text()
    assert old in text
    return Module.parse(text.replace(old, new, count))


def test_modules_in_segments_and_in_order_are_valid() -> None:
    verify(in_segments())
    verify(in_order())
    read_module(in_order().text(), "<module>")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('["pp", 2], ["microbatch", 2]', '["microbatch", 2], ["pp", 2]', "must be the last axis of the mesh"),
        ('comm.pipeline = "pp"', 'comm.pipeline = "sp"', 'the pipeline axis "sp" is not an axis of ranks'),
        ('comm.pipeline = "pp"', 'comm.pipeline = "microbatch"', "not an axis of ranks"),
        ('["pp", 2]', '["pp", 3]', '"pp" has 3 coordinates, but there is no entry function "main_2"'),
        ("@forward_0", "@main", 'may not have "main"'),
        ("func.func @main_1", "func.func private @main_1", "must be public"),
        ("microbatch = 1 : i64", "microbatch = 2 : i64", "microbatch 2 is out of range: there are 2 microbatches"),
        ('axis = "pp"', 'axis = "dp"', 'along the pipeline axis "pp", not along "dp"'),
        ("peer = 1 : i64", "peer = 0 : i64", "stage 0 sends to or receives from itself"),
        ('axes = ["dp"]', 'axes = ["dp", "microbatch"]', "no collective may be over the microbatch axis"),
        ('"comm.all_reduce"', '"comm.permute"', 'the constant "shift" of type int is missing'),
        ("order = 3 : i64", "order = 4 : i64", "no stage has argument 3 of the program"),
        ('name = "w0", order = 0', 'name = "w0", order = 2', 'argument 1 needs an "order" of its own'),
        ('name = "w1", order = 2', 'name = "w1", other = 2', '"order" of its own, not None'),
        ('name = "tangent", order = 3', 'name = "tangent", order = 2', "a different tensor in other stages"),
        ('4x4xf32, {dp = "shard(0)"}>', '4x4xf32, {dp = "shard(0)", microbatch = "shard(0)"}>', "return whole batches"),
    ],
)  # fmt: skip
def test_a_violation_in_a_module_in_order_is_named(old: str, new: str, says: str) -> None:
    assert says in refused(changed(old, new))


@pytest.mark.parametrize("axes", ['["pp"]', '["dp", "pp"]'])
def test_no_permute_is_between_stages(axes: str) -> None:
    text = in_order().text().replace('"comm.all_reduce"', '"comm.permute"')
    module = Module.parse(text.replace('{axes = ["dp"], reduce = "sum"}', f"{{axes = {axes}, shift = 1 : i64}}"))
    assert 'stages on "pp" exchange messages; a collective "permute" may not cross them' in refused(module)


def test_what_depends_on_a_microbatch_is_in_a_call_for_one() -> None:
    assert "is outside of a call for a microbatch" in refused(in_order([OFFSET, *FIRST]))
    segments = SEGMENTS.replace("return %h :", f"{OFFSET}\nreturn %h :")
    verify(in_order(segments=segments))
    first = [line.replace("{microbatch = 0 : i64}", "") for line in FIRST]
    expected = '"forward_0" depends on the microbatch, but the call has none'
    assert expected in refused(in_order(first, segments=segments))


def test_the_entry_function_of_a_stage_is_not_called() -> None:
    head = 'module attributes {comm.level = "comm", comm.mesh = [["pp", 2]], comm.pipeline = "pp"}'
    functions = "func.func @main_0() { func.call @main_1() : () -> () return } func.func @main_1() { return }"
    assert '"main_1" is the entry function of a stage and may not be called' in refused(
        Module.parse(f"{head} {{ {functions} }}")
    )


def test_a_call_that_does_not_depend_on_the_microbatch_may_leave_it_out() -> None:
    verify(in_order([line.replace("{microbatch = 0 : i64}", "") for line in FIRST]))


def test_a_call_has_no_microbatch_before_stages_have_entry_functions() -> None:
    text = in_segments().text().replace("@forward_0(%arg2, %arg0)", "@forward_0(%arg2, %arg0) {microbatch = 0 : i64}")
    assert "microbatch = 0" in text
    assert "only in a module with an entry function per stage" in refused(Module.parse(text))


def test_a_microbatch_that_is_not_a_number_is_refused_with_its_position() -> None:
    text = in_order().text(locations=False).replace("microbatch = 0 : i64", 'microbatch = "x"', 1)
    with pytest.raises(StrettoError, match="constants cannot be read") as caught:
        read_module(text, "a.mlir")
    assert caught.value.span is not None and caught.value.span.line > 1


def test_functions_that_are_built_with_records_are_public() -> None:
    module = Module.empty(mesh=(("pp", 1), (MICROBATCH, 1)))
    set_pipeline_axis(module, "pp")
    finish_function(build_function(module, "main_0", [], records=[]), [], [])
    finish_function(build_function(module, "task", []), [])
    verify(module)
    assert "private @task" in str(module) and "private @main_0" not in str(module)
