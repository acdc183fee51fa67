"""`stretto doctor`: a diagnosis as text and tables, the plan last, so that it can be copied."""

from __future__ import annotations

from ..report.remarks import remark_text, warning_text
from ..text.console import count_text, heading, say, shape_text, table
from .diagnosis import Diagnosis, Finding


def show_diagnosis(diagnosis: Diagnosis, written_to: str | None) -> None:
    """Print it; the plan itself too, unless it was written to a file."""
    job = diagnosis.job
    say(f"model    {diagnosis.model}, from {job.target}")
    inputs = ", ".join(f"{name} {shape_text(shape)} {dtype}" for name, (shape, dtype) in diagnosis.inputs.items())
    say(f"inputs   {inputs or 'no tensors'}")
    share = diagnosis.cut / diagnosis.parameters if diagnosis.parameters else 0.0
    say(f"weights  {diagnosis.parameters:,} parameters, {share:.0%} of them cut by the plan below")
    heading("Parameters, by the names that globs match")
    table(("parameter", "shape", "of", "plan"), [_row(each) for each in diagnosis.findings])
    _whole(diagnosis)
    _no_rule(diagnosis)
    if diagnosis.note:
        say()
        say(f"note: {diagnosis.note}")
    for each in diagnosis.warnings:
        say(warning_text(each))
    heading(f"Plan{f', written to {written_to}' if written_to else ''}")
    say(diagnosis.plan.text.rstrip("\n"))
    say()
    plan = written_to or "my.plan"
    sizes = (("batch", job.batch or job.data), ("seq", job.seq)) if job.target.startswith("hf:") else ()
    given = [f"--{name} {value}" for name, value in (*sizes, ("dtype", job.dtype)) if value is not None]
    given += ["--mode infer"] if job.mode == "infer" else []
    command = " ".join(["stretto compile", job.target, *given, f"--plan {plan} -o my_program"])
    say(f"next: {command} && stretto run my_program --check")


def _row(finding: Finding) -> tuple[str, str, str, str]:
    count = f" ({len(finding.names)})" if len(finding.names) > 1 else ""
    also = f" = {', '.join(finding.aliases)}" if finding.aliases else ""
    kind = "" if finding.kind == "other" else finding.kind
    return f"{finding.name}{count}{also}", shape_text(finding.shape), kind, "whole" if finding.why else finding.role


def _whole(diagnosis: Diagnosis) -> None:
    reasons: dict[str, list[Finding]] = {}
    for each in diagnosis.findings:
        if each.why:
            reasons.setdefault(each.why, []).append(each)
    if not reasons:
        return
    heading("Whole on every rank")
    for why, findings in reasons.items():
        number = sum(len(each.names) for each in findings)
        say(f"  {count_text(number, 'tensor')}: {why}")
        say(f"    {', '.join(each.name for each in findings)}")


def _no_rule(diagnosis: Diagnosis) -> None:
    if diagnosis.without_rule:
        heading("Operations that every rank computes")
        for each in diagnosis.without_rule:
            say(f"  {remark_text(each)}")
