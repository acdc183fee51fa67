"""`stretto zoo`: each row is compiled, verified pass by pass, proved and checked against eager PyTorch, in float64.

The checks are those of `stretto verify TARGET --plan`, `compile --check` and `verify DIR`; their verdicts are put
together. A row that a check refuses is a row that fails; the others are still checked.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from tempfile import TemporaryDirectory

from ...diagnostics import StrettoError
from ...runtime.program.arguments import Json
from ..calls.compile_check import checked_record
from ..check.folder_values import judge_values
from ..check.pass_check import CheckOptions
from ..check.verify_passes import PassesReport
from ..check.verify_program import ProgramVerdict, verify_program
from ..check.verify_target import TargetJob, verify_target
from ..compile.compile_target import CompileJob, compile_target
from ..text.console import count_text, note, say, table
from .rows import Row

_PASSED, _FAILED, _UNJUDGED = "passed", "failed", "not judged"


@dataclass(frozen=True)
class RowVerdict:
    """The verdicts on a row; of a row that was refused, those up to the error."""

    row: Row
    seconds: float
    ranks: int | None = None
    checked: Mapping[str, Json] | None = None
    """What `compile --check` found, as the manifest says it."""
    proved: ProgramVerdict | None = None
    passes: PassesReport | None = None
    error: StrettoError | None = None

    @property
    def order(self) -> str:
        """safe, unsafe, or empty."""
        return "" if self.proved is None else "safe" if self.proved.verdict.safe else "unsafe"

    @property
    def values(self) -> str:
        """Whether the program computes what its module says."""
        return "" if self.proved is None or self.proved.values is None else self.proved.values.judgement

    @property
    def verified(self) -> str:
        """Whether capture, passes and lowering keep the values."""
        if self.passes is None:
            return ""
        return "equal" if self.passes.passed else _UNJUDGED if self.passes.is_unjudged else "differs"

    @property
    def eager(self) -> str:
        """Whether the program and the calls of a training loop give what eager PyTorch gives."""
        return "" if self.checked is None else str(self.checked.get("result"))

    @property
    def verdict(self) -> str:
        """passed, failed or not judged."""
        if self.error is not None:
            return _FAILED
        found = (self.verified, self.order, self.values, self.eager)
        if found == ("equal", "safe", "equal", _PASSED):
            return _PASSED
        bad = {"differs", "unsafe", _FAILED} & set(found)
        return _FAILED if bad else _UNJUDGED

    def to_json(self) -> dict[str, object]:
        return {
            "row": self.row.name, "verdict": self.verdict, "ranks": self.ranks, "seconds": self.seconds,
            "passes": None if self.passes is None else dict(self.passes.to_json()),
            "program": None if self.proved is None else dict(self.proved.to_json()),
            "check": None if self.checked is None else dict(self.checked),
            "error": None if self.error is None else dict(self.error.to_json()),
        }  # fmt: skip


@dataclass(frozen=True)
class ZooReport:
    """The verdicts on all rows that were asked for."""

    rows: tuple[RowVerdict, ...]

    @property
    def passed(self) -> bool:
        """Whether every row passed."""
        return all(row.verdict == _PASSED for row in self.rows)

    @property
    def is_unjudged(self) -> bool:
        """Whether no row failed, but something of a row could not be compared."""
        return not self.passed and all(row.verdict != _FAILED for row in self.rows)

    def to_json(self) -> Mapping[str, object]:
        return {"rows": [row.to_json() for row in self.rows]}


def check_zoo(rows: Sequence[Row]) -> ZooReport:
    """Check the rows one after the other."""
    verdicts = []
    for number, row in enumerate(rows, 1):
        note(f"{row.name} ({number} of {len(rows)})")
        verdicts.append(_check_row(row))
    return ZooReport(tuple(verdicts))


def _check_row(row: Row) -> RowVerdict:
    start = time.perf_counter()
    found = RowVerdict(row, 0.0)
    try:
        with TemporaryDirectory(prefix="stretto") as scratch:
            folder = f"{scratch}/program"
            program, _ = compile_target(CompileJob(row.target, str(row.plan), folder, dtype="float64"), checked_record)
            found = replace(found, ranks=program.mesh.ranks, checked=program.manifest.checked)
            judge = partial(judge_values, options=CheckOptions())
            found = replace(found, proved=verify_program(folder, None, judge).only)
        found = replace(found, passes=verify_target(TargetJob(row.target, str(row.plan))))
    except StrettoError as error:
        found = replace(found, error=error)
    return replace(found, seconds=time.perf_counter() - start)


def show_zoo(report: ZooReport) -> None:
    """Print a row for each system, and why rows fail."""
    headers = ("row", "ranks", "passes", "order", "values", "eager", "verdict", "seconds")
    rows = [
        (
            row.row.name, str(row.ranks or ""), row.verified, row.order, row.values, row.eager, row.verdict,
            f"{row.seconds:.0f}",
        )
        for row in report.rows
    ]  # fmt: skip
    table(headers, rows, right=("ranks", "seconds"))
    say()
    for row in report.rows:
        for line in _why(row):
            say(line)
    passed = sum(row.verdict == _PASSED for row in report.rows)
    say(f"{passed} of {count_text(len(report.rows), 'row')} passed")


def _why(row: RowVerdict) -> list[str]:
    """What to look at where a row did not pass."""
    if row.error is not None:
        return [row.error.render()]
    commands = {
        f"stretto compile {row.row.target} --plan {row.row.plan} --dtype float64 --check -o DIR": row.eager != _PASSED,
        "stretto verify DIR, of the same program": (row.order, row.values) != ("safe", "equal"),
        f"stretto verify {row.row.target} --plan {row.row.plan}": row.verified != "equal",
    }
    return [f"{row.row.name}: {command} says more" for command, shown in commands.items() if shown]
