"""The ways to say which plan: a path, the text itself, or the value that both are read to."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ...dsl.plan import Plan

PlanSource = str | os.PathLike[str] | Plan
"""A `Plan`, the path of a plan file, or the text of a plan."""

_TEXT = re.compile(r"\s*mesh[\s(]|.*\n", re.DOTALL)
"""A string that names no file is a plan's text when it has more than one line, or starts with the mesh."""


def find_plan(source: PlanSource, beside: Path | None = None) -> Plan:
    """The plan that `source` means. A relative path counts from the working directory, then from the folder `beside`.

    Raises PlanError: E0118 and E0119 for a file that cannot be read, and all that is wrong inside the plan.

    >>> find_plan("mesh (dp=2)").mesh.size
    2
    """
    if isinstance(source, Plan):
        return source
    path = Path(source)
    found = next((each for each in _places(path, beside) if _is_file(each)), None)
    if found is not None:
        return Plan.load(found)
    if isinstance(source, str) and _TEXT.match(source):
        return Plan.parse(source)
    return Plan.load(path)


def _places(path: Path, beside: Path | None) -> list[Path]:
    return [path] if beside is None else [path, beside / path]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a text is no path: too long, or with a null byte
        return False
