"""`stretto compile TARGET --check`: the new program against eager PyTorch, before any rewriting of capture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from tempfile import TemporaryDirectory

from ...dsl.plan import Plan
from ...frontend.targets.load_target import load_target
from ...runtime.checks.program_check import check
from ...runtime.checks.report import (
    CALLS,
    MEMORY,
    PLAN,
    PROCESS,
    RAISED,
    REPEATED,
    TARGET,
    WEIGHTS,
    CheckReport,
    Verdict,
)
from ...runtime.program.arguments import Json
from ...runtime.program.program import Program
from ..check.live_model import eager_expected
from ..compile.compile_target import CompileJob
from ..readings.plan_rows import rows_of_plan
from ..text.console import count_text, say
from .comparison import compare_calls

_SHOWN = 5
_CHECKED_ON = "cpu"
"""Checks run ranks as threads of this process, whatever the program is for; the manifest says so."""
_TOLD = (TARGET, MEMORY, REPEATED, PROCESS)
"""The kinds of rows of which the note is shown."""


def checked_record(program: Program, job: CompileJob) -> dict[str, Json]:
    """Check a program as a folder has it, and the target's model in the calls of its user; the manifest's record of it.

    Errors: E0348, E0667, those of writing and reading a folder, and those of running it.
    """
    with TemporaryDirectory(prefix="stretto") as folder:
        program.save(f"{folder}/program")
        written = Program.load(f"{folder}/program").on(_CHECKED_ON)
        report = check(written, expected=eager_expected(written, job.target))
    plan = Plan.load(job.plan)
    calls = compare_calls(job.target, job.request, plan)
    planned = rows_of_plan(written, plan.text, load_target(job.target, job.request).model)
    report = replace(report, rows=(*report.rows, *calls.rows, *planned))
    differing = [row for row in report.rows if row.differs]
    counts = Counter(row.verdict for row in report.computed)
    weights = Counter(row.verdict for row in report.rows if row.kind == WEIGHTS)
    return {
        "result": _result(report), "targets": [_CHECKED_ON],
        "reference": "eager PyTorch", "regimes": list(report.regimes),
        "tensors": {str(verdict): count for verdict, count in sorted(counts.items())},
        "weights": {str(verdict): count for verdict, count in sorted(weights.items())},
        "calls": next((row.note for row in calls.rows if row.kind == CALLS), "compared"),
        "roles_by_size": list(calls.roles.by_size),
        "criterion": report.criterion, "steps": report.steps, "seed": report.seed,
        "differ": [f"{row.kind} {row.name}" for row in differing if row.kind not in (PLAN, RAISED, *_TOLD)][:_SHOWN],
        "raised": [f"{row.name} raised {row.note}" for row in differing if row.kind == RAISED],
        "others": [f"{row.name}: {row.note}" for row in differing if row.kind in _TOLD][:_SHOWN],
        "otherwise_planned": [f"{row.name}: {row.note}" for row in planned][:_SHOWN],
    }  # fmt: skip


def show_checked(program: Program) -> None:
    """Print a line on the record of a check."""
    record = program.manifest.checked
    match record:
        case {"result": "passed", "tensors": {"equal": int(equal)}, "criterion": str(criterion)}:
            text = f"passed: {count_text(equal, 'tensor')} {criterion}; the reference is eager PyTorch"
        case {"result": "failed", "raised": [str(first), *_]}:
            text = f"failed: {first}"
        case {"result": "failed", "differ": [_, *_] as names}:
            text = f"failed: {', '.join(map(str, names))} differ from eager PyTorch"
        case {"result": "failed", "others": [str(first), *_]}:
            text = f"failed: {first}"
        case {"result": "failed", "otherwise_planned": [_, *_]}:
            text = "failed: the program is not what the plan says"
        case _:
            text = f"{record.get('result')}: nothing could be compared with eager PyTorch"
    target = program.manifest.target
    say(f"check          {text}{f'; checked on {_CHECKED_ON}, not on {target}' if target != _CHECKED_ON else ''}")
    if record.get("raised"):
        say("               stretto verify TARGET --plan FILE names the pass or the part that is wrong")
    planned = record.get("otherwise_planned")
    for fact in planned if isinstance(planned, list | tuple) else ():
        say(f"               {fact}")
    weights = record.get("weights")
    count = weights.get(str(Verdict.NOT_CHECKED)) if isinstance(weights, Mapping) else None
    if isinstance(count, int):
        tensors = count_text(count, "tensor")
        say(f"               the first weights of {tensors} were not compared: each load gives others")
    if isinstance(calls := record.get("calls"), str) and calls != "compared":
        say(f"               the calls of stretto.compile were not compared: {calls}")
    match record.get("roles_by_size"):
        case [_, _, *_] as names:
            listed = ", ".join(map(str, names))
            say(f"               roles taken from equal sizes: {listed}; state them with shard inputs")


def _result(report: CheckReport) -> str:
    if report.is_unjudged:
        return "not judged"
    return "passed" if report.passed else "failed"
