"""Plans as users pass them: a path, the text of a plan, or a `Plan`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ...dsl.plan import Plan

PlanSource = str | os.PathLike[str] | Plan
"""A `Plan`, the path of a plan file, or the text of a plan."""

_TEXT = re.compile(r"\s*(mesh|shard|precision|pipeline|schedule)\b[\s({\"]|\s*#|\s*\Z|.*\n", re.DOTALL)
"""A string that names no file is the text of a plan if it has several lines, or none, or starts with a statement."""


def find_plan(source: PlanSource, beside: Path | None = None) -> Plan:
    """The plan that `source` names. A relative path is tried from the working directory, then from `beside`.

    Raises PlanError: E0118 and E0119 for a file that cannot be read, and the errors of the plan itself.

    >>> find_plan("mesh (dp=2)").mesh.size
    2
    """
    if isinstance(source, Plan):
        return source
    path = Path(source)
    file = next((candidate for candidate in _candidates(path, beside) if _is_file(candidate)), None)
    if file is not None:
        return Plan.load(file)
    if isinstance(source, str) and _TEXT.match(source):
        return Plan.parse(source)
    return Plan.load(path)


def _candidates(path: Path, beside: Path | None) -> list[Path]:
    return [path] if beside is None else [path, beside / path]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a text is no path: too long, or with a null byte
        return False
