"""Compile a case under a plan in float64, and compare what its ranks compute with the model on one device."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from stretto.driver.compile.compile_program import compile_capture, compile_program
from stretto.driver.compile.request import Compiled, CompileRequest, Observer, Options
from stretto.dsl import Plan
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import Capture, Mode
from stretto.frontend.to_ir import Floats
from stretto.ir.module import Module
from stretto.runtime.checks.program_check import check
from stretto.runtime.checks.report import CheckReport, Verdict
from torch import nn

from .models import Case


def compiled(
    case: Case, plan: str, mode: Mode = Mode.TRAIN, after: Callable[[str, Module], None] | None = None
) -> Compiled:
    """The program of a case; the loss alone in training, the logits in inference. One capture serves all plans."""
    inputs, captured = _captured(case, mode)
    options = _options(mode, loss_only=True, about=inputs.about)
    return compile_capture(captured, inputs.model, Plan.parse(plan), options, Observer(module=after))


@cache
def _captured(case: Case, mode: Mode) -> tuple[Case, Capture]:
    trains = mode is Mode.TRAIN
    inputs = case if trains else case.without_labels()
    return inputs, capture(inputs.model, (), inputs.inputs, mode=mode, loss_only=trains)


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
    options = _options(mode, loss_only=loss_only, about=about or {})
    return compile_program(CompileRequest.of(model, (), inputs, Plan.parse(plan), options), Observer(module=after))


def _options(mode: Mode, *, loss_only: bool, about: dict[str, Any]) -> Options:
    loss_only = loss_only and mode is Mode.TRAIN
    return Options(mode=mode, loss_only=loss_only, floats=Floats.FLOAT64, arguments={"inputs": about})


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
