"""`stretto verify FILE -p PIPELINE`: does every pass leave the values alone? The interpreter runs before and after it.

All ranks run in this process, in float64, on random inputs, with NaN in padding; what a pass leaves is compared with
what it was given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..diagnostics import StrettoError
from ..ir.interpreter import Verdict as Judged
from ..ir.interpreter import compare, infer_ranges
from ..ir.interpreter.errors import MEMORY
from ..ir.module import Module
from ..ir.source_text import read_module
from ..ir.verifier import verify
from ..passes.manager import PassManager, Verification, single, step_name
from ..passes.pipeline import parse_pipeline
from ..runtime.arguments import Json
from .console import progress, say, table
from .failures import ir_of_failures
from .text_files import read_text

_ITSELF = "(as given)"
"""In place of a pass: the module compared with itself, so that what cannot be run is not laid to a pass."""


@dataclass(frozen=True)
class PassesJob:
    """What the command line asks for."""

    file: str
    pipeline: str
    seed: int = 0
    tolerance: float = 1e-9
    """The largest error, relative to a result's largest value, that counts as equal."""
    memory_cap_bytes: int | None = None
    """Of all ranks together; None: half of the machine's memory."""


@dataclass(frozen=True)
class PassVerdict:
    """What one pass did to the values."""

    name: str
    equal: bool
    error: float
    """The largest of all results, relative."""
    results: int
    """How many were compared; those that are all zero or NaN before and after say nothing, and are not counted."""
    differ: tuple[str, ...] = ()
    """Each result that differs, or why the module that the pass leaves cannot be run."""

    def to_json(self) -> dict[str, Json]:
        return {
            "pass": self.name, "equal": self.equal, "error": self.error, "results": self.results,
            "differ": list(self.differ),
        }  # fmt: skip


@dataclass(frozen=True)
class PassesReport:
    """The verdict of each pass up to the first that differs; `not_run` are those after it."""

    verdicts: tuple[PassVerdict, ...]
    not_run: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all are equal."""
        return all(each.equal for each in self.verdicts)

    def to_json(self) -> Mapping[str, Json]:
        rows: Json = [each.to_json() for each in self.verdicts]
        return {"passed": self.passed, "passes": rows, "not_run": list(self.not_run)}


def verify_passes(job: PassesJob) -> PassesReport:
    """Run the passes one by one, each compared with what was before it; stops at the first that differs.

    Errors: those of `optimize` (`opt.py`), E0655 where the interpreter would need more memory than the cap, and those
    with which it refuses the module as given.
    """
    steps = list(single(parse_pipeline(job.pipeline)))
    text, name = read_text(job.file)
    module = read_module(text, name)
    judge = _Judge(job, module)
    verdicts: list[PassVerdict] = []
    with progress(len(steps) + 1) as bar, ir_of_failures() as keep:
        keep(module)
        bar.to("the module as given")
        judge.check_runs()
        for number, step in enumerate(steps):
            bar.to(step_name(step), number + 1)
            PassManager([step], verification=Verification.NEVER).run(module)
            verdicts.append(judge.after(step_name(step), module))
            if not verdicts[-1].equal:
                break
    return PassesReport(tuple(verdicts), tuple(step_name(step) for step in steps[len(verdicts) :]))


def show_passes(report: PassesReport) -> None:
    """Print a row for each pass, and what differs."""
    rows = [(v.name, str(v.results), f"{v.error:.1e}", "equal" if v.equal else "differs") for v in report.verdicts]
    rows += [(name, "", "", "not run") for name in report.not_run]
    table(("pass", "results", "largest error", "verdict"), rows, right=("results", "largest error"))
    say()
    last = report.verdicts[-1]
    if report.passed:
        count = len(report.verdicts)
        say(f"equal: {'the pass' if count == 1 else f'all {count} passes'} left the values as they were")
        return
    say(f'differs: "{last.name}" is the first pass that changes values')
    for line in last.differ:
        say(f"  {line}")


class _Judge:
    """Compares each module with the one before it."""

    def __init__(self, job: PassesJob, module: Module) -> None:
        self.job = job
        self.before = _copy(module)
        self.ranges = infer_ranges(self.before)

    def check_runs(self) -> None:
        """Raise what the interpreter has against the module as given."""
        self._compare(_ITSELF, self.before)

    def after(self, name: str, module: Module) -> PassVerdict:
        """The verdict on one pass; to leave a module that is invalid, or that cannot be run, is to differ."""
        try:
            verify(module)
            left = _copy(module)
            verdict = self._compare(name, left)
        except StrettoError as error:
            if error.code == MEMORY:
                raise
            return PassVerdict(name, False, math.inf, 0, tuple(error.render().splitlines()))
        self.before = left
        return verdict

    def _compare(self, name: str, left: Module) -> PassVerdict:
        job = self.job
        found = compare(
            self.before, left, job.seed, ranges=self.ranges, tolerance=job.tolerance, max_bytes=job.memory_cap_bytes
        )
        differ = tuple(str(each) for each in found.of(Judged.DIFFERENT))
        if not found.is_equal and not differ:
            differ = ("every result is all zero or holds a NaN, before and after: nothing could be compared",)
        compared = len(found.results) - len(found.of(Judged.NOT_CHECKED))
        return PassVerdict(name, found.is_equal, found.error, compared, differ)


def _copy(module: Module) -> Module:
    return Module.parse(module.text())
