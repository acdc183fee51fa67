"""Runs passes in order on one module, verifies after each, and collects what they say."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..diagnostics import StrettoError
from ..ir.module import Module
from ..ir.verifier import verify
from .base import Pass, Remark, Report

Step = Pass | str
"""A pass of ours, or a pipeline of upstream's passes such as "canonicalize,cse"."""


@dataclass
class PassRun:
    """What one pass did: its name, its report, and how long it took (seconds)."""

    name: str
    report: Report
    seconds: float


@dataclass
class PassManager:
    """A list of passes. `after` is called with each pass's name and the module it leaves."""

    steps: Sequence[Step]
    after: Callable[[str, Module], None] | None = None
    runs: list[PassRun] = field(default_factory=list)

    def run(self, module: Module) -> list[Remark]:
        """Run every pass; the remarks of all. A pass that leaves an invalid module is an internal error."""
        for step in self.steps:
            name = step if isinstance(step, str) else step.name
            start = time.perf_counter()
            report = _run(step, module)
            self.runs.append(PassRun(name, report, time.perf_counter() - start))
            _verify(module, name)
            if self.after is not None:
                self.after(name, module)
        return [remark for run in self.runs for remark in run.report.remarks]


def _run(step: Step, module: Module) -> Report:
    if isinstance(step, str):
        module.run_upstream(step)
        return Report()
    return step.run(module)


def _verify(module: Module, name: str) -> None:
    try:
        verify(module)
    except StrettoError as error:
        raise RuntimeError(f'pass "{name}" left an invalid module: {error}') from error
