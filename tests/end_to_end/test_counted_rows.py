"""`comm.all_to_all_rows` from a module to ranks: rows that go to other ranks and come back change nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from stretto.driver.check.lowering_check import compare_with_module, records_of
from stretto.driver.compile import compile_program
from stretto.driver.compile.request import CAPTURED
from stretto.ir.bindings import mlir
from stretto.ir.collectives import ALL_REDUCE, ALL_TO_ALL, ALL_TO_ALL_ROWS
from stretto.ir.dialects.context import context
from stretto.ir.equivalence import compare
from stretto.ir.module import Module, operations
from stretto.ir.operations import read
from stretto.ir.placement import axes_size
from stretto.ir.types import TensorType, from_mlir
from stretto.passes.base import Pass, Report
from stretto.passes.default_pipeline import PipelineConfig
from stretto.passes.manager import Step, step_name
from stretto.passes.rewriting import Emitter
from stretto.runtime.checks.program_check import check
from stretto.runtime.checks.report import Verdict
from stretto.runtime.processes.jobs import check_entry
from stretto.runtime.prover import prove

from ..forked_ranks import values_of_ranks
from .checking import assert_report, compiled
from .models import Size, gpt, plan
from .traffic import kinds, messages


@dataclass(frozen=True)
class RoundTrip(Pass):
    """Sends what each sum over two ranks takes to the second of them, and back."""

    name: ClassVar[str] = "round-trip"

    def run(self, module: Module) -> Report:
        count = 0
        for function in module.functions().values():
            for op in operations(function):
                call = read(op)
                if call is None or call.name != ALL_REDUCE or not from_mlir(call.args[0].type).shape:
                    continue
                axes, value, emitter = call.args[1], call.args[0], Emitter(op.location)
                ranks, type_ = axes_size(module.mesh, tuple(axes)), from_mlir(value.type)
                rows, *others = type_.shape
                assert ranks == 2, "the counts 0 and all are those of two ranks"
                with context(), mlir.InsertionPoint(op):
                    counts = TensorType(torch.int64, (ranks,))
                    sent = emitter.op("aten.arange.start_step", 0, ranks * rows, rows, type=counts)
                    received = emitter.like(ALL_TO_ALL, sent, axes, 0, 0)
                    bound = TensorType(type_.dtype, (ranks * rows, *others))
                    there = emitter.op(ALL_TO_ALL_ROWS, value, axes, ranks * rows, sent, received, type=bound)
                    back = emitter.op(ALL_TO_ALL_ROWS, there, axes, rows, received, sent, type=type_)
                op.operands[0] = back
                count += 1
        return Report(count)


def checked(_rank: int, folder: Path) -> dict[str, Any]:
    return check_entry({"folder": str(folder), "steps": 2, "seed": 1})


def test_rows_go_there_and_back_in_both_interpreters_and_runtimes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usual = compile_program.default_pipeline

    def pipeline(config: PipelineConfig) -> list[Step]:
        steps = usual(config)
        at = [step_name(step) for step in steps].index("start-collectives")
        return [*steps[:at], RoundTrip(), *steps[at:]]

    monkeypatch.setattr(compile_program, "default_pipeline", pipeline)
    texts: dict[str, str] = {}
    made = compiled(
        gpt(Size(layers=1)), plan("gpt", "tp=2"), after=lambda name, module: texts.update({name: module.text()})
    )
    assert "all_to_all_rows" in kinds(messages(made))
    assert compare(Module.parse(texts[CAPTURED]), Module.parse(made.program.ir)).is_equal
    last = Module.parse(made.program.ir)
    assert compare_with_module(last, records_of(last), 0, {}, 1e-9, None).is_equal
    assert_report(check(made.program))
    assert prove(made.program).safe
    made.program.save(tmp_path / "program")
    for report in values_of_ranks(checked, 2, tmp_path / "program"):
        assert report["rows"] and not [row for row in report["rows"] if row["verdict"] == Verdict.DIFFERS]
