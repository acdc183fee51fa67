"""What the passes said, as a program holds it: read, counted, and put into words. It needs no compiler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ...diagnostics import Span, rendered
from ...runtime.program.arguments import Json
from ...runtime.program.program import Program
from ..text.console import place_text

RemarkJson = Mapping[str, Json]
"""A remark: pass, kind (applied, missed, note, warning), message, module, file, line, backward, and plan, its place."""

KINDS = ("applied", "missed", "note")


def remarks_of(program: Program) -> list[RemarkJson]:
    """All remarks of a program, in the order of the passes."""
    remarks = program.remarks if isinstance(program.remarks, Sequence) else ()
    return [each for each in remarks if isinstance(each, Mapping)]


def is_warning(remark: RemarkJson) -> bool:
    """Whether it says that something the user asked for has no effect."""
    return remark.get("kind") == "warning"


def warning_text(remark: RemarkJson) -> str:
    """A warning with the line of the plan that it is about, and carets."""
    return rendered(f"warning: {remark.get('message')}", _span(remark))


def remark_text(remark: RemarkJson) -> str:
    """A remark on one line: kind, pass, message, and where it is about."""
    line = remark.get("line")
    span = _span(remark)
    place = place_text(str(remark.get("file") or ""), line if isinstance(line, int) else 0)
    parts = (str(remark.get("module") or ""), place, str(span) if span else "")
    where = ", ".join(part for part in parts if part)
    what = f"{remark.get('kind')}[{remark.get('pass')}]: {remark.get('message')}"
    return f"{what} ({where})" if where else what


def counted(remarks: Sequence[RemarkJson]) -> list[tuple[str, str]]:
    """For each pass that says anything, in order, how many remarks of each kind it has."""
    found: dict[str, Counter[str]] = {}
    for each in remarks:
        found.setdefault(str(each.get("pass")), Counter())[str(each.get("kind"))] += 1
    return [
        (name, ", ".join(f"{counts[kind]} {kind}" for kind in dict.fromkeys((*KINDS, *counts)) if counts[kind]))
        for name, counts in found.items()
    ]


def _span(remark: RemarkJson) -> Span | None:
    """The place in the plan, as far as a file that someone else may have changed gives it."""
    match remark.get("plan"):
        case {"file": str(file), "line": int(line), "column": int(column), "length": int(length), "text": str(text)}:
            return Span(file, line, column, min(length, len(text) + 1), text)
    return None
