"""`stretto doctor`: print a diagnosis as text and tables, with the plan at the end."""

from __future__ import annotations

from ..report.remarks import remark_text, warning_text
from ..text.console import count_text, heading, say, shape_text, table
from .diagnosis import Diagnosis, Finding


def show_diagnosis(diagnosis: Diagnosis, written_to: str | None) -> None:
    """Print a diagnosis and its plan."""
    job = diagnosis.job
    say(f"model    {diagnosis.model}, from {job.target}")
    inputs = ", ".join(f"{name} {shape_text(shape)} {dtype}" for name, (shape, dtype) in diagnosis.inputs.items())
    say(f"inputs   {inputs or 'no tensors'}")
    share = diagnosis.sharded / diagnosis.parameters if diagnosis.parameters else 0.0
    say(f"weights  {diagnosis.parameters:,} parameters, {share:.0%} of them sharded by the plan below")
    heading("Parameters, with the names for globs")
    table(("parameter", "shape", "owner", "plan"), [_finding_row(entry) for entry in diagnosis.findings])
    _show_replicated(diagnosis)
    _show_without_rule(diagnosis)
    if diagnosis.note:
        say()
        say(f"note: {diagnosis.note}")
    for entry in diagnosis.warnings:
        say(warning_text(entry))
    heading(f"Plan{f', written to {written_to}' if written_to else ''}")
    say(diagnosis.plan.text.rstrip("\n"))
    say()
    plan = written_to or "my.plan"
    sizes = (("batch", job.batch or job.data), ("seq", job.seq)) if job.target.startswith("hf:") else ()
    options = [f"--{name} {value}" for name, value in (*sizes, ("dtype", job.dtype)) if value is not None]
    options += ["--mode infer"] if job.mode == "infer" else []
    command = " ".join(["stretto compile", job.target, *options, f"--plan {plan} -o my_program"])
    say(f"next: {command} && stretto run my_program --check")


def _finding_row(finding: Finding) -> tuple[str, str, str, str]:
    count = f" ({len(finding.names)})" if len(finding.names) > 1 else ""
    also = f" = {', '.join(finding.aliases)}" if finding.aliases else ""
    kind = "" if finding.kind == "other" else finding.kind
    return (
        f"{finding.name}{count}{also}",
        shape_text(finding.shape),
        kind,
        "replicated" if finding.why else finding.role,
    )


def _show_replicated(diagnosis: Diagnosis) -> None:
    reasons: dict[str, list[Finding]] = {}
    for finding in diagnosis.findings:
        if finding.why:
            reasons.setdefault(finding.why, []).append(finding)
    if not reasons:
        return
    heading("Replicated parameters")
    for why, findings in reasons.items():
        number = sum(len(finding.names) for finding in findings)
        say(f"  {count_text(number, 'tensor')}: {why}")
        say(f"    {', '.join(finding.name for finding in findings)}")


def _show_without_rule(diagnosis: Diagnosis) -> None:
    if diagnosis.without_rule:
        heading("Operations without a sharding rule, computed on every rank")
        for remark in diagnosis.without_rule:
            say(f"  {remark_text(remark)}")
