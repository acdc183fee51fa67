"""`comm.permute` from a module to ranks: sums over ranks as rings of permutes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
from stretto.driver.check.lowering_check import compare_with_module, records_of
from stretto.driver.compile import compile_program
from stretto.driver.compile.request import CAPTURED
from stretto.ir.bindings import mlir
from stretto.ir.collectives import ALL_REDUCE, PERMUTE
from stretto.ir.dialects.context import context
from stretto.ir.equivalence import compare
from stretto.ir.module import Module, operations
from stretto.ir.operations import read
from stretto.ir.placement import axes_size
from stretto.ir.types import from_mlir
from stretto.passes.base import Pass, Report
from stretto.passes.default_pipeline import PipelineConfig
from stretto.passes.manager import Step, step_name
from stretto.passes.rewriting import Emitter
from stretto.runtime.checks.program_check import check
from stretto.runtime.prover import prove

from ..subsets import some
from .checking import assert_report, compiled
from .models import Size, gpt, plan
from .traffic import kinds, messages


@dataclass(frozen=True)
class RingReduce(Pass):
    """Replaces each sum over ranks by the sum of a tensor that goes once round the ring."""

    name: ClassVar[str] = "ring-reduce"

    def run(self, module: Module) -> Report:
        count = 0
        for function in module.functions().values():
            for op in operations(function):
                call = read(op)
                if call is None or call.name != ALL_REDUCE or call.args[2] != "sum":
                    continue
                emitter, total = Emitter(op.location), call.args[0]
                result = from_mlir(op.results[0].type)
                with context(), mlir.InsertionPoint(op):
                    passed = total
                    for _ in range(axes_size(module.mesh, tuple(call.args[1])) - 1):
                        passed = emitter.like(PERMUTE, passed, call.args[1], 1)
                        total = emitter.op("aten.add.Tensor", total, passed, type=result)
                op.results[0].replace_all_uses_with(total)
                op.operation.erase()
                count += 1
        return Report(count)


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = compile_program.default_pipeline

    def pipeline(config: PipelineConfig) -> list[Step]:
        steps = usual(config)
        start = [step_name(step) for step in steps].index("start-collectives")
        return [*steps[:start], RingReduce(), *steps[start:]]

    monkeypatch.setattr(compile_program, "default_pipeline", pipeline)


@pytest.mark.usefixtures("ring")
@pytest.mark.parametrize("mesh", some("dp=2, tp=2", "tp=4"))
@pytest.mark.slow
def test_a_gpt_whose_sums_go_round_a_ring_trains_as_on_one_device(mesh: str) -> None:
    texts: dict[str, str] = {}
    made = compiled(
        gpt(Size(layers=1)), plan("gpt", mesh), after=lambda name, module: texts.update({name: module.text()})
    )
    assert "permute" in kinds(messages(made))
    comparison = compare(Module.parse(texts[CAPTURED]), Module.parse(made.program.ir))
    assert comparison.is_equal, comparison
    last = Module.parse(made.program.ir)
    assert compare_with_module(last, records_of(last), 0, {}, 1e-9, None).is_equal
    assert_report(check(made.program))
    assert prove(made.program).safe
