"""`stretto verify FILE -p PIPELINE`: does every pass keep the values? The interpreter runs before and after each pass.

Where the passes end in a module that can be lowered, it is, and the program is compared with the module.

All ranks run in this process, in float64, on random inputs, with NaN in padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...ir.equivalence.one_sided import OneSided
from ...ir.equivalence.regimes import Regime
from ...ir.module import Module
from ...ir.source_text import read_module
from ...passes.manager import single, step_name
from ...runtime.program.arguments import Json
from ..ir_files.dump_ir import ir_of_failures
from ..ir_files.module_source import Source
from ..text.console import progress, say, table
from .lowering_check import LOWERING, can_be_lowered, records_of
from .pass_check import (
    Breakage,
    CheckOptions,
    Meaning,
    PassChecker,
    PassVerdict,
    verdict_of,
    with_stated_ranges,
)
from .regime_check import REGIMES, Ends, check_regimes

CAPTURE = "capture"
"""The name of the row that compares the captured module with eager PyTorch."""
_DECISIONS_SHOWN = 5
_PASS_ALONE = "stretto reduce, with the same arguments, finds the smallest module on which PASS fails"


@dataclass(frozen=True)
class PassesJob:
    """The arguments of `stretto verify -p`."""

    source: Source
    options: CheckOptions = CheckOptions()


@dataclass(frozen=True)
class PassesReport:
    """The verdict of each pass up to the first that differs; `not_run` are the passes after it."""

    verdicts: tuple[PassVerdict, ...]
    not_run: tuple[str, ...] = ()
    regime: Regime = Regime.NORMAL
    """That of the rows: normal, or the first other one in which something differs."""
    regimes: tuple[Regime, ...] = ()
    """The regimes of inputs in which nothing differs."""
    one_sided: tuple[OneSided, ...] = ()
    """Decisions of the module that took one side only, in all of them."""

    @property
    def passed(self) -> bool:
        """Whether every pass is equal, or changes the function as the plan says; false where one is unchecked."""
        return all(verdict.equal or verdict.changes for verdict in self.verdicts)

    @property
    def is_unjudged(self) -> bool:
        """Whether no pass differs, but the results of some pass could not be compared."""
        return not self.passed and all(verdict.breakage is None for verdict in self.verdicts)

    @property
    def _verdict(self) -> str:
        return "equal" if self.passed else "not judged" if self.is_unjudged else "differs"

    def to_json(self) -> Mapping[str, Json]:
        rows: Json = [_verdict_json(verdict) for verdict in self.verdicts]
        return {
            "passed": self.passed, "verdict": self._verdict, "passes": rows, "not_run": list(self.not_run),
            "regime": str(self.regime), "regimes": [str(regime) for regime in self.regimes],
            "one_sided": [str(decision) for decision in self.one_sided],
        }  # fmt: skip


def verify_passes(job: PassesJob) -> PassesReport:
    """Run the passes one by one and check each; stops at the first that differs.

    Errors: those of `optimize` (`opt.py`), E0655 where the interpreter would need more memory than the cap, and those
    with which it refuses the module as given.
    """
    steps = list(single(job.source.steps()))
    module = read_module(job.source.text, job.source.name)
    checker = PassChecker(module, job.options)
    base = checker.before
    verdicts: list[PassVerdict] = []
    with progress(len(steps) + 3) as bar, ir_of_failures(_PASS_ALONE) as keep:
        keep(module)
        bar.show("the module as given")
        checker.check_runs()
        for number, step in enumerate(steps):
            bar.show(step_name(step), number + 1)
            verdicts.append(checker.run(step))
            if verdicts[-1].breakage is not None:
                break
            if verdicts[-1].meaning is not Meaning.SAME:
                base = checker.before
        else:
            bar.show(LOWERING, len(steps) + 1)
            lowered = checker.lowered()
            verdicts += [] if lowered is None else [lowered]
            if job.options.regime is Regime.NORMAL and all(v.breakage is None for v in verdicts):
                bar.show(REGIMES, len(steps) + 2)
                return _in_other_regimes(job, checker, base, PassesReport(tuple(verdicts)))
    not_run = tuple(step_name(step) for step in steps[len(verdicts) :])
    return PassesReport(tuple(verdicts), not_run, job.options.regime)


def _in_other_regimes(job: PassesJob, checker: PassChecker, base: Module, report: PassesReport) -> PassesReport:
    """The report with the other regimes. Where one differs, the passes are checked one by one in it."""
    options, after = job.options, checker.before
    program = records_of(after) if can_be_lowered(after) else None
    ranges = with_stated_ranges(base, options.ranges)
    found = check_regimes(Ends(base, after, program), options.seed, ranges, options.tolerance, options.memory_cap_bytes)
    if found.differs is not None:
        one_by_one = verify_passes(replace(job, options=replace(options, regime=found.differs)))
        if not one_by_one.passed and not one_by_one.is_unjudged:
            return one_by_one
        row = verdict_of(f"{REGIMES}: {found.differs}", found.comparison)
        row = replace(row, breakage=Breakage.VALUES, message=(*row.message, *found.failed.splitlines()))
        return replace(report, verdicts=(*report.verdicts, row), regime=found.differs)
    judged = tuple(regime for regime in Regime if regime not in found.unjudged)
    return replace(report, regimes=judged, one_sided=found.one_sided)


def show_passes(report: PassesReport) -> None:
    """Print a row for each pass, and the results that differ."""
    rows = [(v.name, str(v.results), f"{v.error:.1e}", _word(v)) for v in report.verdicts]
    rows += [(name, "", "", "not run") for name in report.not_run]
    table(("pass", "results", "largest error", "verdict"), rows, right=("results", "largest error"))
    say()
    last = report.verdicts[-1]
    changing = [verdict.name for verdict in report.verdicts if verdict.changes]
    first = report.verdicts[0]
    if first.name == CAPTURE and first.equal:
        say("equal: the captured module computes what eager PyTorch does")
    if report.passed:
        _show_regimes(report)
        is_lowered = last.name == LOWERING
        count = len(report.verdicts) - len(changing) - is_lowered - (first.name == CAPTURE)
        if count:
            lowering = ", and the program computes the same" if is_lowered else ""
            say(f"equal: {_counted(count, others=bool(changing))} left the values as they were{lowering}")
        for name in changing:
            say(f"{name} changes the function, as the plan says")
        for verdict in report.verdicts:
            if verdict.meaning is Meaning.MEAN:
                say(f"{verdict.name} was compared with {verdict.meaning}")
        return
    if report.is_unjudged:
        unchecked = next(verdict for verdict in report.verdicts if verdict.is_unchecked)
        say(f'not judged: of "{unchecked.name}", {unchecked.lines[0]}')
        return
    if report.regime is not Regime.NORMAL:
        say(f"with {report.regime} inputs:")
    what = "the dtypes in which the module computes" if last.breakage is Breakage.DTYPES else "values"
    if last.breakage is Breakage.FAILED:
        say(f'differs: "{last.name}" raised an error')
    elif last.name == CAPTURE:
        say("differs: the captured module does not compute what eager PyTorch does")
    elif last.name == LOWERING:
        say("differs: the program does not compute what the module does that it was lowered from")
    else:
        say(f'differs: "{last.name}" is the first pass that changes {what}')
    for line in last.lines:
        say(f"  {line}")


def _show_regimes(report: PassesReport) -> None:
    if report.regimes:
        say(f"inputs: {', '.join(report.regimes)}")
    for decision in report.one_sided[:_DECISIONS_SHOWN]:
        say(f"one side only: {decision}")
    if len(report.one_sided) > _DECISIONS_SHOWN:
        say(f"one side only: {len(report.one_sided) - _DECISIONS_SHOWN} more; --json lists all")


def _counted(count: int, *, others: bool) -> str:
    """A number of passes for a sentence; with `others` there are passes that are not counted."""
    if count == 1:
        return "the other pass" if others else "the pass"
    return f"all {count} {'other ' if others else ''}passes"


def _word(verdict: PassVerdict) -> str:
    if verdict.changes:
        return "changes"
    return "equal" if verdict.equal else "not judged" if verdict.is_unchecked else "differs"


def _verdict_json(verdict: PassVerdict) -> dict[str, Json]:
    return {
        "pass": verdict.name, "equal": verdict.equal, "verdict": _word(verdict), "error": verdict.error,
        "results": verdict.results, "differ": list(verdict.lines),
    }  # fmt: skip
