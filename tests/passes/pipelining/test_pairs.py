"""A forward and a backward of different microbatches in one function."""

from __future__ import annotations

import pytest
import torch
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import Compiled, CompileRequest, Observer, Options
from stretto.dsl import Plan
from stretto.frontend.to_ir import Floats
from stretto.ir.equivalence import compare
from stretto.ir.module import Module, callee, operations
from stretto.ir.pipelined_module import entries, microbatch_of, turn_of
from stretto.runtime.checks.program_check import check
from torch import Tensor, nn


class Layer(nn.Module):
    """A residual layer with dropout, which reads its coordinate on the microbatch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.drop = nn.Linear(8, 16), nn.Linear(16, 8), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, 8) to the same."""
        return x + self.drop(self.down(torch.tanh(self.up(x))))


class Model(nn.Module):
    """Layers and a mean square."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(rows, 8) to a loss."""
        for layer in self.layers:
            x = layer(x)
        return (x * x).mean()


def compiled(tp: int) -> tuple[Compiled, dict[str, str]]:
    """DualPipe-V over two ranks; also the module after each pass."""
    shards = 'shard "*.up" columns over tp\nshard "*.down" rows over tp\n' if tp > 1 else ""
    plan = Plan.parse(f"mesh (pp=2, tp={tp})\n{shards}pipeline over pp {{ schedule dualpipe-v  microbatches 4 }}\n")
    texts: dict[str, str] = {}

    def after(name: str, module: Module) -> None:
        texts[name] = module.text()

    torch.manual_seed(0)
    options = Options(floats=Floats.FLOAT64)
    request = CompileRequest.of(Model(), (torch.randn(8, 8),), {}, plan, options)
    return compile_program(request, Observer(module=after)), texts


@pytest.fixture(scope="module")
def sharded() -> tuple[Compiled, dict[str, str]]:
    return compiled(2)


def test_each_tasks_collectives_stand_before_work_of_the_other(sharded: tuple[Compiled, dict[str, str]]) -> None:
    module = Module.parse(sharded[1]["start-collectives"])
    pair = module.functions()["overlap_forward_2_input_gradient_1_weight_gradient_1"]
    names = [op.operation.name for op in operations(pair)]
    turns = [turn_of(op) for op in operations(pair)]
    hidden = 0
    for index, name in enumerate(names):
        if name == "comm.all_reduce_start":
            end = names.index("comm.wait", index)
            hidden += {0, 1} <= {turn for turn in turns[max(index - 8, 0) : end] if turn is not None}
    assert hidden and turns.index(1) < len(turns) - 1 - turns[::-1].index(0)


def test_a_call_of_two_tasks_names_both_microbatches(sharded: tuple[Compiled, dict[str, str]]) -> None:
    module = Module.parse(sharded[1]["start-collectives"])
    calls = [op for f in entries(module) for op in operations(f) if (callee(op) or "").startswith("overlap")]
    assert calls and all(isinstance(microbatch_of(op), tuple) for op in calls)


def test_values_are_kept_masks_of_dropout_too(sharded: tuple[Compiled, dict[str, str]]) -> None:
    program, texts = sharded
    assert compare(Module.parse(texts["captured"]), Module.parse(texts["start-collectives"])).is_equal
    assert check(program.program).passed


def test_without_collectives_nothing_is_interleaved_and_a_remark_says_so() -> None:
    program, texts = compiled(1)
    assert "overlap_" not in texts["order-tasks"]
    reports = [
        str(report.remarks) for report in [run.report for run in program.runs] if "no collective to hide" in str(report)
    ]
    assert reports and check(program.program).passed
