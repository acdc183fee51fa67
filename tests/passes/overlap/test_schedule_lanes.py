"""What `schedule-lanes` says of memory, and what neither it nor its neighbours move across a custom op."""

from __future__ import annotations

import pytest
import torch
from stretto.ir.module import Module
from stretto.ops.allowed import allow_ops
from stretto.passes.base import RemarkKind
from stretto.passes.manager import PassManager
from stretto.passes.pipeline_text import parse_pipeline
from torch import Tensor

SUM = "tensor<64x64xf32>"
PARTIAL = 'tensor<64x64xf32, {tp = "partial(sum)"}>'


def _module(body: str, results: str) -> Module:
    head = 'module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]}'
    return Module.parse(f"{head} {{ func.func @main(%x: {PARTIAL}, %y: {SUM}) -> ({results}) {{ {body} }} }}")


def _mm(name: str, operand: str) -> str:
    return f'{name} = "aten.mm_default"({operand}, {operand}) : ({SUM}, {SUM}) -> {SUM}\n'


def test_an_order_that_needs_more_memory_is_not_taken_and_said() -> None:
    start = f'%f = "comm.all_reduce_start"(%n) {{axes = ["tp"], reduce = "sum"}} : ({PARTIAL}) -> !async.value<{SUM}>'
    module = _module(
        f"""%n = "aten.neg_default"(%x) : ({PARTIAL}) -> {PARTIAL}
        {start}
        %1 = "comm.wait"(%f) : (!async.value<{SUM}>) -> {SUM}
        %2 = "aten.sum_default"(%1) : ({SUM}) -> tensor<f32>
        {_mm("%3", "%y")} return %2, %3 : tensor<f32>, {SUM}""",
        f"tensor<f32>, {SUM}",
    )
    before = str(module)
    [remark] = PassManager(parse_pipeline("schedule-lanes")).run(module)
    assert remark.kind is RemarkKind.MISSED and "would raise the peak of a rank" in remark.message
    assert str(module) == before


@torch.library.custom_op("lanes_tests::twist", mutates_args=())
def twist(x: Tensor) -> Tensor:
    """An op whose code nobody knows."""
    return x * 2


twist.register_fake(torch.empty_like)


@pytest.mark.parametrize("pipeline", ["start-collectives", "hoist-collectives,start-collectives,schedule-lanes"])
def test_a_custom_op_between_a_collective_and_its_use_ends_it_with_a_remark(
    pipeline: str,
) -> None:
    allow_ops("lanes_tests::twist")
    module = _module(
        f"""%1 = "comm.all_reduce"(%x) {{axes = ["tp"], reduce = "sum"}} : ({PARTIAL}) -> {SUM}
        {_mm("%2", "%y")}
        %3 = "custom_lanes_tests_twist_default.call"(%2) : ({SUM}) -> {SUM}
        {_mm("%4", "%3")}
        %5 = "aten.add_tensor"(%1, %4) : ({SUM}, {SUM}) -> {SUM}
        return %5 : {SUM}""",
        SUM,
    )
    remarks = PassManager(parse_pipeline(pipeline)).run(module)
    text = str(module)
    places = [
        text.index(f'"{op}"') for op in ("comm.all_reduce_start", "comm.wait", "custom_lanes_tests_twist_default.call")
    ]
    assert places == sorted(places)
    messages = [remark.message for remark in remarks if remark.kind is RemarkKind.MISSED]
    assert any('ends before "lanes_tests.twist.default"' in message for message in messages)


def test_a_lane_that_no_operation_has_is_a_warning() -> None:
    [remark] = PassManager(parse_pipeline("assign-lanes{axes=dp}")).run(_module(f"return %y : {SUM}", SUM))
    assert remark.kind is RemarkKind.WARNING
    assert remark.message == 'no operation is on the lane "dp": no collective is over the axis'
