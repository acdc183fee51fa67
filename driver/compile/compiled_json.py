"""`stretto compile --json`: what was compiled, as one JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ...runtime.program.folder import MANIFEST
from ...runtime.program.program import Program
from ..report.advice import advice
from ..report.explain import explain
from ..report.remarks import is_warning, remarks_of, warning_text
from .compile_target import CompileJob


def compiled_json(program: Program, job: CompileJob, seconds: Mapping[str, float]) -> dict[str, object]:
    """The target, the plan and the folder, the warnings, the seconds of each stage, and `explain --json` as a part."""
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
