"""The remarks of the passes in a program: read, counted and printed. It needs no compiler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ...diagnostics import Span, rendered
from ...runtime.program.arguments import Json
from ...runtime.program.program import Program
from ..text.console import place_text

RemarkJson = Mapping[str, Json]
"""A remark: pass, kind (`RemarkKind`), message, module, file, line, backward, plan (its place)."""

KINDS = ("applied", "missed", "note")


def remarks_of(program: Program) -> list[RemarkJson]:
    """All remarks of a program, in the order of the passes."""
    remarks = program.remarks if isinstance(program.remarks, Sequence) else ()
    return [remark for remark in remarks if isinstance(remark, Mapping)]


def is_warning(remark: RemarkJson) -> bool:
    """Whether it says that a statement of the plan has no effect."""
    return remark.get("kind") == "warning"


def is_implied(remark: RemarkJson) -> bool:
    """Whether its message is a statement that the plan does not write out."""
    return remark.get("kind") == "implied"


def warning_text(remark: RemarkJson) -> str:
    """A warning with its line of the plan, and carets."""
    return rendered(f"warning: {remark.get('message')}", _span(remark))


def remark_text(remark: RemarkJson) -> str:
    """A remark on one line: kind, pass, message, place."""
    line = remark.get("line")
    span = _span(remark)
    place = place_text(str(remark.get("file") or ""), line if isinstance(line, int) else 0)
    parts = (str(remark.get("module") or ""), place, str(span) if span else "")
    where = ", ".join(part for part in parts if part)
    what = f"{remark.get('kind')}[{remark.get('pass')}]: {remark.get('message')}"
    return f"{what} ({where})" if where else what


def counts_by_pass(remarks: Sequence[RemarkJson]) -> list[tuple[str, str]]:
    """For each pass with remarks, in order, the number of remarks of each kind."""
    by_pass: dict[str, Counter[str]] = {}
    for remark in remarks:
        by_pass.setdefault(str(remark.get("pass")), Counter())[str(remark.get("kind"))] += 1
    return [
        (name, ", ".join(f"{counts[kind]} {kind}" for kind in dict.fromkeys((*KINDS, *counts)) if counts[kind]))
        for name, counts in by_pass.items()
    ]


def _span(remark: RemarkJson) -> Span | None:
    """The place in the plan; None where the record is missing or malformed."""
    match remark.get("plan"):
        case {"file": str(file), "line": int(line), "column": int(column), "length": int(length), "text": str(text)}:
            return Span(file, line, column, min(length, len(text) + 1), text)
    return None
