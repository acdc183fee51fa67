"""Compile a case under a plan in float64, and compare what its ranks compute with the model on one device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import Compiled, CompileRequest, Observer, Options
from stretto.dsl import Plan
from stretto.frontend.captured import Mode
from stretto.frontend.to_ir import Floats
from stretto.ir.module import Module
from stretto.runtime.checks.program_check import check
from stretto.runtime.checks.report import CheckReport, Verdict
from torch import nn

from .models import Case


def compiled(
    case: Case, plan: str, mode: Mode = Mode.TRAIN, after: Callable[[str, Module], None] | None = None
) -> Compiled:
    """The program of a case; the loss alone in training, the logits in inference."""
    inputs = case if mode is Mode.TRAIN else case.without_labels()
    return compiled_model(inputs.model, inputs.inputs, plan, mode, about=inputs.about, loss_only=True, after=after)


def compiled_model(
    model: nn.Module,
    inputs: dict[str, Any],
    plan: str,
    mode: Mode = Mode.TRAIN,
    *,
    about: dict[str, Any] | None = None,
    loss_only: bool = False,
    after: Callable[[str, Module], None] | None = None,
) -> Compiled:
    """The program, in float64, of one call of a model."""
    options = Options(
        mode=mode,
        loss_only=loss_only and mode is Mode.TRAIN,
        floats=Floats.FLOAT64,
        arguments={"inputs": about or {}},
    )
    return compile_program(CompileRequest.of(model, (), inputs, Plan.parse(plan), options), Observer(module=after))


def assert_equal(case: Case, plan: str, mode: Mode = Mode.TRAIN) -> CheckReport:
    """Every output, gradient and parameter after three steps is as on one device, to 1e-9."""
    torch.manual_seed(0)
    report = check(compiled(case, plan, mode).program)
    assert_report(report)
    return report


def assert_report(report: CheckReport) -> None:
    """Nothing differs, and no gradient that could be compared was left out."""
    wrong = [row for row in report.rows if row.verdict is Verdict.DIFFERS]
    assert report.passed, "\n".join(map(str, wrong))
    assert report.tolerance == 1e-9
