"""`stretto run DIR`: train or infer for some steps, or check the program against the model on one device."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from ...runtime.checks.program_check import check
from ...runtime.checks.report import CheckReport, CheckRow, Verdict
from ...runtime.checks.steps import StepsReport, run_steps
from ...runtime.named_entries.program_set import load_entry
from ...runtime.program.arguments import Json
from ...runtime.program.entries import MAIN
from ...runtime.program.program import Program
from ...runtime.rank.nan_watch import detect_anomaly
from ..report.bound_kinds import fallbacks
from ..report.trace_file import trace
from ..text.console import count_text, heading, note, progress, say, table
from .live_model import Comparison, comparison_for

_ROWS_SHOWN = 10


@dataclass(frozen=True)
class RunJob:
    """The arguments of `stretto run`."""

    folder: str
    ranks: str = "threads"
    """threads or processes."""
    steps: int = 3
    detect_anomaly: bool = False
    """Look for the operation that makes the first NaN."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Values of named sizes; a size that is left out keeps the value it was compiled at."""
    against: str = ""
    """The target whose model, in eager PyTorch, is the reference of a check; empty: the program's own reference."""
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """For a check, the values [low, high) of integer inputs of which the program says none."""
    entry: str | None = None
    """The entry of a folder that has several."""
    trace: str = ""
    """The file for what ran when; empty: none."""
    target: str | None = None
    """What the program runs on; None: what it was compiled for."""

    def program(self) -> Program:
        """The program that is to run. What runs as its body for want of a kernel is told on stderr."""
        program = load_entry(self.folder, self.entry).on(self.target).at(self.sizes)
        for text in fallbacks(program):
            note(text)
        return program


def run_for_steps(job: RunJob) -> tuple[Program, StepsReport]:
    """Run the steps; returns the program and the report. Raises RunError E0336 for a NaN if `detect_anomaly` is set."""
    program = job.program()
    if job.ranks == "processes":
        from ...runtime.processes.jobs import run_processes_for

        with progress(job.steps) as bar:
            bar.show(f"{program.mesh.ranks} processes")
            return program, run_processes_for(
                job.folder,
                steps=job.steps,
                anomalies=job.detect_anomaly,
                sizes=job.sizes,
                named_entry=job.entry,
                target=job.target,
            )
    anomalies = detect_anomaly() if job.detect_anomaly else nullcontext()
    with progress(job.steps) as bar, anomalies, trace(job.trace) if job.trace else nullcontext():
        bar.show("step 1")

        def after(step: int, loss: float | None) -> None:
            bar.show(f"step {step + 2}" if step + 1 < job.steps else "", step + 1)

        return program, run_steps(program, steps=job.steps, after=after)


def show_steps(program: Program, job: RunJob, report: StepsReport) -> None:
    """Print a line for each step, then the median time."""
    for step, seconds in enumerate(report.seconds):
        loss = f"  loss {report.losses[step]:.6f}" if step < len(report.losses) else ""
        say(f"step {step + 1}{loss}  {1000 * seconds:.1f} ms")
    bad = next((step for step, loss in enumerate(report.losses) if math.isnan(loss)), None)
    if bad is not None:
        say(f"the loss is NaN from step {bad + 1} on; --detect-anomaly names the operation that made the first NaN")
    rate = f", {report.tokens_per_s:,.0f} tokens/s" if report.tokens_per_s is not None else ""
    ranks = f"{program.mesh.ranks} ranks as {job.ranks}"
    say(f"median step {1000 * report.median_s:.1f} ms{rate} ({ranks}, {program.manifest.dtype})")


def steps_json(program: Program, job: RunJob, report: StepsReport) -> dict[str, Json]:
    """The JSON of `show_steps`."""
    return {**report.to_json(), "ranks": program.mesh.ranks, "ranks_as": job.ranks, **_ran(program)}


def _ran(program: Program) -> dict[str, Json]:
    return {"dtype": program.manifest.dtype, "target": program.manifest.target}


def run_check(job: RunJob) -> tuple[CheckReport, Comparison]:
    """Check the program; returns the report and the reference that it was compared with."""
    with progress(2) as bar:
        bar.show("loading the program and the model")
        program = job.program()
        against = _against(job)
        comparison = comparison_for(program, against)
        bar.show(f"checking on {count_text(program.mesh.ranks, 'rank')}", 1)
        if job.ranks == "processes":
            from ...runtime.processes.jobs import check_processes

            entry = f"{comparison_for.__module__}:check_entry"
            report = check_processes(
                job.folder, steps=job.steps, entry=entry, sizes=job.sizes, against=against, ranges=job.ranges,
                named_entry=job.entry, target=job.target,
            )  # fmt: skip
        else:
            report = check(program, expected=comparison.expected, steps=job.steps, ranges=job.ranges)
        return replace(report, rows=(*report.rows, *_rows_of_plan(program, comparison))), comparison


def _rows_of_plan(program: Program, comparison: Comparison) -> list[CheckRow]:
    """A row for each fact that the program has otherwise than its plan says; none where the compiler is missing."""
    try:
        from ..readings.plan_rows import rows_of_folder_plan
    except ImportError:
        return []
    return rows_of_folder_plan(program, comparison.model)


def _against(job: RunJob) -> str:
    """The target that is compared with: that of the entry, where the folder's and the target's have the same names."""
    scheme, _, name = job.against.rpartition(":")
    is_named = not job.against or not job.entry or scheme == "hf" or "." in name
    return job.against if is_named or job.entry == MAIN else f"{job.against}.{job.entry}"


def show_check(report: CheckReport, comparison: Comparison) -> None:
    """Print the largest error of each kind, the tensors that are not equal, and the verdict."""
    say(f"reference  {comparison.why}")
    say()
    kinds = list(dict.fromkeys(row.kind for row in report.rows))
    by_kind = [(kind, [row for row in report.rows if row.kind == kind]) for kind in kinds]
    lines = [(kind, str(len(rows)), *_worst(rows), _verdicts(rows)) for kind, rows in by_kind]
    table(("kind", "tensors", "largest error", "tensor", "verdict"), lines, right=("tensors", "largest error"))
    unequal = sorted((row for row in report.rows if row.verdict is not Verdict.EQUAL or row.note), key=_worst_first)
    if unequal:
        heading("Tensors to look at")
        shown = [(row.name, row.kind, f"{row.error:.1e}", row.verdict, row.note) for row in unequal[:_ROWS_SHOWN]]
        table(("name", "kind", "error", "verdict", "note"), shown, right=("error",))
        if len(unequal) > _ROWS_SHOWN:
            say(f"  and {len(unequal) - _ROWS_SHOWN} more; --json lists all")
    say()
    if len(report.regimes) > 1:
        say(f"values: {', '.join(report.regimes)}")
    say(_conclusion(report))


def check_json(job: RunJob, report: CheckReport, comparison: Comparison) -> dict[str, Json]:
    """The JSON of `show_check`, with every tensor."""
    reference: Json = {"live": comparison.live, "what": comparison.why}
    return {**report.to_json(), "ranks_as": job.ranks, "reference": reference}


def _worst(rows: list[CheckRow]) -> tuple[str, str]:
    judged = [row for row in rows if row.verdict is not Verdict.NOT_CHECKED] or rows
    row = max(judged, key=lambda row: row.error)
    return f"{row.error:.1e}", f"output {row.name}" if row.kind == "output" else row.name


def _verdicts(rows: list[CheckRow]) -> str:
    counts = Counter(row.verdict for row in rows)
    if len(counts) == 1:
        return rows[0].verdict
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))


def _worst_first(row: CheckRow) -> tuple[bool, float]:
    return row.verdict is not Verdict.DIFFERS, -row.error if math.isfinite(row.error) else -math.inf


def _conclusion(report: CheckReport) -> str:
    """One line: passed or not, and by which criterion."""
    counts = Counter(row.verdict for row in report.computed)
    after = f" after {count_text(report.steps, 'step')} of AdamW" if report.steps else ""
    if report.is_unjudged:
        return "not judged: every tensor is zero, or nothing but rounding, so nothing could be compared"
    if report.passed:
        return f"passed: {counts[Verdict.EQUAL]} tensors are {report.criterion}{after}"
    return f"failed: {report.failures}{after}"
