"""Cutting, splitting and ordering a tiny step: values are kept, and what cannot be is refused at its place."""

from __future__ import annotations

import pytest
from stretto.diagnostics import StrettoError
from stretto.dsl.plan import Plan
from stretto.ir.equivalence import compare
from stretto.ir.module import Module, callee, operations
from stretto.ir.pipelined_module import entries, microbatch_of
from stretto.passes.base import Pass
from stretto.passes.manager import PassManager
from stretto.passes.pipelining.attributes import segment_of
from stretto.passes.pipelining.cut_stages import CutStages
from stretto.passes.pipelining.order_tasks import OrderTasks
from stretto.passes.pipelining.split_segments import SplitSegments
from stretto.schedules.schedule import Kind

from .toy import plan, toy

SCHEDULES = ("gpipe", "1f1b", "zb-h1", "zb-h2", "zb-auto", "forward-only")


def ordered(items: str, stages: int = 2) -> Module:
    """The toy in order."""
    module, the_plan = toy(stages), plan(items, stages)
    PassManager([CutStages(the_plan), SplitSegments(the_plan), OrderTasks(the_plan)]).run(module)
    return module


def tasks(module: Module, coordinate: int) -> list[str]:
    """The calls of an entry, each with its microbatch."""
    return [f"{callee(op)}:{microbatch_of(op)}" for op in operations(entries(module)[coordinate]) if callee(op)]


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb-h1", "zb-h2", "zb-auto"])
def test_every_step_of_the_way_keeps_loss_and_gradients(schedule: str) -> None:
    the_plan = plan(f'schedule {schedule} split "down"')
    module = toy()
    for step in (CutStages(the_plan), SplitSegments(the_plan), OrderTasks(the_plan)):
        before = Module.parse(module.text())
        PassManager([step]).run(module)
        comparison = compare(before, module)
        assert comparison.is_equal and comparison.error < 1e-12
    assert compare(toy(), module).is_equal


def test_full_backwards_stay_whole_where_no_task_is_w() -> None:
    module = ordered('schedule 1f1b split "down"')
    assert tasks(module, 1) == ["forward_1:0", "backward_1:0", "forward_1:1", "backward_1:1"]


def test_gradients_of_weights_come_when_the_schedule_says() -> None:
    module = ordered('schedule zb-h1 split "down"')
    order = tasks(module, 1)
    assert order.index("input_gradient_1:1") < order.index("weight_gradient_1:1")
    assert {"weight_gradient_1:0", "weight_gradient_1:1", "input_gradient_1:0"} <= set(order)


def test_a_single_stage_is_a_pipeline_too() -> None:
    module = ordered("schedule gpipe", 1)
    assert tasks(module, 0) == ["forward_0:0", "forward_0:1", "backward_0:0", "backward_0:1"]
    assert compare(toy(), module).is_equal


def test_a_segment_takes_only_what_it_reads() -> None:
    module, the_plan = toy(), plan('schedule zb-h1 split "down"')
    PassManager([CutStages(the_plan), SplitSegments(the_plan)]).run(module)
    marked = {segment_of(op): op for op in operations(module.functions()["main"]) if segment_of(op)}
    assert {(Kind.F, 0), (Kind.F, 1), (Kind.B, 1), (Kind.W, 1), (Kind.W, 0)} == set(marked)
    assert len(marked[Kind.W, 0].operands) == 2


def test_more_stages_than_there_is_work_are_refused() -> None:
    with pytest.raises(StrettoError, match="9 stages, but the forward has only") as caught:
        ordered("schedule gpipe", 9)
    assert caught.value.code == "E0451" and caught.value.span is not None


def test_a_module_that_is_not_there_begins_no_stage() -> None:
    with pytest.raises(StrettoError, match='"dwn" matches no module') as caught:
        ordered('schedule gpipe split "dwn"')
    assert caught.value.code == "E0452" and '"down"' in caught.value.help


def test_as_many_modules_are_named_as_stages_begin() -> None:
    with pytest.raises(StrettoError, match="begins 2 stages behind the first") as caught:
        ordered('schedule gpipe split "down", "loss"')
    assert caught.value.code == "E0453" and caught.value.span is not None


def test_a_reduction_over_microbatches_in_the_middle_is_refused_with_its_place() -> None:
    text = toy().text()
    coupled = text.replace(
        '= "aten.mul_tensor"(%1, %1) : (tensor<4x8xf32, {microbatch = "shard(0)"}>, ',
        '= "aten.mul_tensor"(%1, %j) : (tensor<4x8xf32, {microbatch = "shard(0)"}>, ',
    ).replace(
        '    %2 = "aten.mul_tensor"',
        '    %j = "comm.all_reduce"(%1) {axes = ["microbatch"], reduce = "sum"} : '
        '(tensor<4x8xf32, {microbatch = "shard(0)"}>) -> tensor<4x8xf32, {microbatch = "shard(0)"}> loc("norm")\n'
        '    %2 = "aten.mul_tensor"',
        1,
    )
    assert coupled != text
    with pytest.raises(StrettoError, match='not independent in "norm"') as caught:
        CutStages(plan("schedule gpipe")).run(Module.parse(coupled))
    assert caught.value.code == "E0450"


def test_an_unknown_schedule_is_refused_in_the_plan() -> None:
    with pytest.raises(StrettoError, match='unknown schedule "1f1c"') as caught:
        ordered("schedule 1f1c")
    assert caught.value.span is not None and "1f1b" in caught.value.help


def test_a_schedule_that_is_not_defined_for_the_numbers_is_refused_in_the_plan() -> None:
    with pytest.raises(StrettoError, match="dualpipe-v") as caught:
        ordered("schedule dualpipe-v")
    assert caught.value.code == "E0441" and caught.value.span is not None


def test_a_written_schedule_that_deadlocks_is_refused_with_the_counterexample() -> None:
    text = """mesh (pp=2)
pipeline over pp { schedule mine  microbatches 2 }
schedule mine(stages p, microbatches m) {
  stage s { drain { B } warmup m { F } }
}
"""
    with pytest.raises(StrettoError) as caught:
        CutStages(Plan.parse(text, "mine.plan")).run(toy())
    assert caught.value.code in ("E0720", "E0721") and caught.value.span is not None


def refused(step: Pass, module: Module) -> StrettoError:
    with pytest.raises(StrettoError) as caught:
        step.run(module)
    assert caught.value.code == "E0455"
    return caught.value


def test_passes_say_which_one_must_go_before() -> None:
    the_plan = plan('schedule 1f1b split "down"')
    assert refused(SplitSegments(the_plan), toy()).expected == "expected what cut-stages makes"
    assert refused(OrderTasks(the_plan), toy()).expected == "expected what split-segments makes"
    module = toy()
    CutStages(the_plan).run(module)
    SplitSegments(the_plan).run(module)
    assert "in segments" in refused(SplitSegments(the_plan), module).message
    OrderTasks(the_plan).run(module)
    for step in (CutStages(the_plan), SplitSegments(the_plan), OrderTasks(the_plan)):
        assert "entries of their own" in refused(step, module).message


def test_all_passes_are_given_one_plan() -> None:
    others = [
        Plan.parse(text)
        for text in (
            "mesh (pp=2)\npipeline over pp { microbatches 4 }",
            "mesh (pp=4)\npipeline over pp { microbatches 2 }",
        )
    ]
    for other in others:
        assert "where the plan has" in refused(CutStages(other), toy()).message
    module = toy()
    CutStages(plan('schedule 1f1b split "down"')).run(module)
    message = "does not take a module of 2 stages where the plan has 4"
    assert message in refused(SplitSegments(plan("schedule zb-v")), module).message
    SplitSegments(plan("schedule 1f1b")).run(module)
    assert message in refused(OrderTasks(plan("schedule zb-v")), module).message
    assert "whole backwards" in refused(OrderTasks(plan("schedule zb-h1")), module).message
