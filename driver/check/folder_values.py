"""The values of a program folder: its program against the module that it was lowered from, which it holds as text.

Both run in interpreters, on all ranks, on random inputs in float64. Nothing of the folder is executed but ops of the
table of ops, and nothing that would take more memory than the cap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import prod

from ...diagnostics import StrettoError
from ...ir.equivalence.compare import Verdict as ResultVerdict
from ...ir.equivalence.integer_ranges import IntegerRange
from ...ir.interpreter.code import decode
from ...ir.interpreter.errors import MEMORY, NO_RANGE
from ...ir.interpreter.memory import size_text
from ...ir.module import Module
from ...ops.table import find_op
from ...runtime.program.arguments import Json
from ...runtime.program.program import Program
from .lowered_code import other_constants, other_places
from .lowering_check import compare_with_module, records_of_program
from .pass_check import CheckOptions, with_stated_ranges
from .regime_check import Ends, RegimeReport, check_regimes
from .stated_kinds import wrong_kind

DEFAULT_CAP_BYTES = 512 << 20
"""The memory that the values of a folder may take, on all ranks together."""
_FLOAT64_BYTES = 8


class Judgement(StrEnum):
    """The verdict on a folder's values."""

    EQUAL = "equal"
    DIFFERS = "differs"
    NOT_JUDGED = "not judged"


@dataclass(frozen=True)
class ValuesVerdict:
    """Whether a program computes what its module says."""

    judgement: Judgement
    reason: str = ""
    """Why they were not judged."""
    results: int = 0
    """How many results were compared."""
    error: float = 0.0
    """The largest relative error."""
    lines: tuple[str, ...] = ()
    """A line for each result that differs, or the error of the run."""

    @property
    def summary(self) -> str:
        """One line."""
        if self.judgement is Judgement.NOT_JUDGED:
            return f"values: not judged ({self.reason})"
        if self.judgement is Judgement.EQUAL:
            return f"values: {self.results} results are those of the program's module (largest error {self.error:.1e})"
        return "values: the program does not compute what its module does"

    def to_json(self) -> dict[str, Json]:
        return {
            "verdict": str(self.judgement), "reason": self.reason, "results": self.results,
            "error": str(self.error) if self.error == float("inf") else self.error, "differ": list(self.lines),
        }  # fmt: skip


def not_judged(reason: str) -> ValuesVerdict:
    """The verdict where values could not be judged."""
    return ValuesVerdict(Judgement.NOT_JUDGED, reason)


def judge_values(program: Program, options: CheckOptions) -> ValuesVerdict:
    """Compare a program with its module. What prevents it is the reason of a verdict, and no error."""
    cap = DEFAULT_CAP_BYTES if options.memory_cap_bytes is None else options.memory_cap_bytes
    if not program.ir.strip():
        return not_judged("the folder holds no module")
    if sum(prod(each.shape) for each in program.inputs) * _FLOAT64_BYTES > cap:
        return not_judged(_too_large(cap))
    try:
        module = Module.parse(program.ir)
        unknown = _op_outside_table(module)
        ranges = with_stated_ranges(module, options.ranges)
    except StrettoError as error:
        return not_judged(f"the folder's module cannot be read: {error.message}")
    if unknown:
        return not_judged(f"the folder's module calls '{unknown}', which is not in the table of ops")
    try:
        return _compared(program, module, options, ranges, cap)
    except StrettoError as error:
        if error.code == MEMORY:
            return not_judged(_too_large(cap))
        if error.code == NO_RANGE:
            return not_judged(f"{error.message}; {error.help}")
        return ValuesVerdict(Judgement.DIFFERS, error=float("inf"), lines=tuple(error.render().splitlines()))


def _compared(
    program: Program, module: Module, options: CheckOptions, ranges: Mapping[str, IntegerRange], cap: int
) -> ValuesVerdict:
    """The verdict in the normal regime, then in the others."""
    records = records_of_program(program)
    comparison = compare_with_module(module, records, options.seed, ranges, options.tolerance, cap)
    differing, equal = comparison.of(ResultVerdict.DIFFERENT), comparison.of(ResultVerdict.EQUAL)
    other = other_constants(module, records) or other_places(module, records)
    if differing or other:
        lines = (*map(str, differing), *([other] if other else []))
        return ValuesVerdict(Judgement.DIFFERS, "", len(equal) + len(differing), comparison.error, lines)
    if not equal:
        return not_judged("every result is all zero, holds a NaN or is nothing but rounding")
    if wrong := wrong_kind(program):
        return ValuesVerdict(Judgement.DIFFERS, "", len(equal), comparison.error, (wrong,))
    others = check_regimes(Ends(module, module, records), options.seed, ranges, options.tolerance, cap)
    if others.differs is not None:
        return _differs_in(others)
    return ValuesVerdict(Judgement.EQUAL, "", len(equal), comparison.error)


def _differs_in(report: RegimeReport) -> ValuesVerdict:
    """The verdict where the program computes what its module does on values near 1 alone."""
    differing = report.comparison.of(ResultVerdict.DIFFERENT)
    lines = (f"with {report.differs} inputs:", *map(str, differing), *report.failed.splitlines())
    error = report.comparison.error if differing else float("inf")
    return ValuesVerdict(Judgement.DIFFERS, "", len(report.comparison.results), error, lines)


def _op_outside_table(module: Module) -> str:
    """An op of torch that the module calls and a program may not; empty if there is none."""
    names = {step.name for body in decode(module).bodies.values() for step in body.steps}
    foreign = {name for name in names if "." in name and not name.startswith(("nn.", "comm.", "func."))}
    return next((name for name in sorted(foreign) if (op := find_op(name)) is None or op.only_in_references), "")


def _too_large(cap: int) -> str:
    return f"they take more memory than {size_text(cap).replace(' ', '')}; raise --values-cap"
