"""Runs passes in order on one module, verifies before the first and after each, and collects their remarks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from enum import StrEnum

from ..diagnostics import StrettoError
from ..ir.module import Level, Module
from ..ir.verifier import Verified, verify
from .base import Pass, Remark, Report
from .layers.joint_layers import joined
from .option_values import closing_brace

Step = Pass | str
"""A Stretto pass, or upstream passes in MLIR's syntax, such as "canonicalize{top-down=false},cse"; each of these runs
separately."""


class Verification(StrEnum):
    """When the manager verifies."""

    AFTER_EACH = "before the first and after each pass"
    NEVER = "never"


@dataclass
class PassRun:
    """One run of a pass: its name, its report, and its duration (seconds)."""

    name: str
    report: Report
    seconds: float


class PassFailure(RuntimeError):
    """A bug in a pass: it raised an exception other than StrettoError (the cause), or left an invalid module.

    The module stays in the state in which the pass left it.
    """

    def __init__(self, pass_name: str, message: str) -> None:
        self.pass_name = pass_name
        super().__init__(message)


@dataclass
class PassManager:
    """A list of passes. `after` is called with each pass's name and the rewritten module."""

    steps: Sequence[Step]
    after: Callable[[str, Module], None] | None = None
    verification: Verification = Verification.AFTER_EACH
    runs: list[PassRun] = field(default_factory=list)

    def run(self, module: Module) -> list[Remark]:
        """Run every pass; the remarks of all.

        Errors: E0505 and E0506 where the module is invalid to begin with, E0421 before a pass that does not take a
        module of its level, PassFailure, and those with which passes refuse a module.
        """
        verified = Verified()
        if self.verification is Verification.AFTER_EACH:
            verify(module, verified)
        for step in single(self.steps):
            name = step_name(step)
            start = time.perf_counter()
            report = _run(step, module)
            self.runs.append(PassRun(name, report, time.perf_counter() - start))
            if self.verification is Verification.AFTER_EACH:
                _verify(module, name, verified)
            if self.after is not None:
                self.after(name, module)
        return [remark for run in self.runs for remark in run.report.remarks]


def single(steps: Sequence[Step]) -> Iterator[Step]:
    """The steps, with every list of upstream passes split into single ones."""
    for step in steps:
        if isinstance(step, str):
            yield from _split_list(step)
        else:
            yield step


def _split_list(text: str) -> Iterator[str]:
    """The single passes of a list of upstream passes; commas in braces are part of options."""
    start = 0
    while start < len(text):
        end = text.find(",", start)
        brace = text.find("{", start, end if end >= 0 else None)
        if brace >= 0:
            closed = closing_brace(text, brace)
            end = text.find(",", closed) if closed is not None else -1
        end = end if end >= 0 else len(text)
        yield text[start:end]
        start = end + 1


def step_name(step: Step) -> str:
    """The name of one pass."""
    return step.partition("{")[0] if isinstance(step, str) else step.name


def _run(step: Step, module: Module) -> Report:
    try:
        if isinstance(step, str):
            module.run_upstream(step)
            return Report()
        _check_level(step, module.level)
        with joined(module) if _joins_layers(step, module) else nullcontext():
            return step.run(module)
    except (StrettoError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # it goes on as the cause
        name = step_name(step)
        raise PassFailure(name, f'pass "{name}" failed: {type(error).__name__}: {error}') from error


def _joins_layers(step: Pass, module: Module) -> bool:
    return step.joins_layers and (module.level is Level.ATEN or Level.ATEN not in step.levels)


def _check_level(step: Pass, module_level: Level) -> None:
    """Raise E0421 for a module of a level that the pass does not take."""
    if module_level in step.levels:
        return
    advice = {
        Level.COMM: f"its tensors are cut already: run {step.name} on a module from before partition-tensors",
        Level.ATEN: f"its tensors are whole: run propagate-placements,partition-tensors before {step.name}",
    }
    raise StrettoError(
        "E0421",
        f'pass "{step.name}" does not take a module of level "{module_level}"',
        expected=" or ".join(f'level "{level}"' for level in sorted(step.levels)),
        help=f"{advice[module_level]}; compile --dump-ir DIR writes the module before and after each pass",
    )


def _verify(module: Module, name: str, verified: Verified) -> None:
    try:
        verify(module, verified)
    except StrettoError as error:
        raise PassFailure(name, f'pass "{name}" left an invalid module: {error}') from error
