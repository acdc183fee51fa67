"""`stretto compile --json`: what was compiled, as one JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ...runtime.named_entries.program_set import ProgramSet
from ...runtime.program.folder import MANIFEST
from ...runtime.program.program import Program
from ..report.advice import advice
from ..report.explain import explain
from ..report.remarks import is_warning, remarks_of, warning_text
from .compile_target import CompileJob


def compiled_json(programs: ProgramSet, job: CompileJob, seconds: Mapping[str, float]) -> dict[str, object]:
    """The target, the plan and the folder, the warnings, the seconds of each stage, and `explain --json` as a part."""
    found = {entry: _compiled(program, job, seconds) for entry, program in programs}
    if not programs.has_names:
        return next(iter(found.values()))
    parts = {entry: {"warnings": each["warnings"], "explanation": each["explanation"]} for entry, each in found.items()}
    of_all = {key: value for key, value in next(iter(found.values())).items() if key not in ("warnings", "explanation")}
    return {**of_all, "hash": _written_hash(job.output), "entries": parts}


def _compiled(program: Program, job: CompileJob, seconds: Mapping[str, float]) -> dict[str, object]:
    explanation = explain(program)
    return {
        "target": job.target,
        "plan": job.plan,
        "program": job.output,
        "warnings": [*(warning_text(each) for each in remarks_of(program) if is_warning(each)), *advice(explanation)],
        "seconds": dict(seconds),
        "explanation": {**explanation.to_json(), "hash": _written_hash(job.output)},
    }


def _written_hash(folder: str) -> str:
    """The hash of the folder, which covers its files as they were written."""
    manifest: dict[str, str] = json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))
    return manifest["hash"]
