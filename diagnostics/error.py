"""The base class of user errors: what was found, what was expected, where, and one way out."""

from __future__ import annotations

from dataclasses import dataclass

from .printable import printable


@dataclass(frozen=True)
class Span:
    """A range in one line of a text file: 1-based line and column, and a length in characters."""

    file: str
    line: int
    column: int = 1
    length: int = 1
    text: str = ""
    """The source line without its newline; empty if unknown."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class StrettoError(Exception):
    """A mistake in what the user gave, shown without a traceback (exit code 1).

    `code` is "E" and four digits, listed in `docs/errors.md`. `notes` are (message, span) pairs about other positions,
    `help` is one way out. A subclass stands for one kind of input.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        span: Span | None = None,
        expected: str = "",
        notes: tuple[tuple[str, Span | None], ...] = (),
        help: str = "",
    ) -> None:
        self.code = code
        self.message = message
        self.span = span
        self.expected = expected
        self.notes = notes
        self.help = help
        super().__init__(self.render())

    def render(self) -> str:
        """The text on the terminal: position, code, message, source line with carets, notes, help."""
        head = f"error[{self.code}]: {self.message}"
        return rendered(head, self.span, self.expected, self.notes, self.help)

    def to_json(self) -> dict[str, object]:
        """The error as JSON; positions are None if unknown."""
        return {
            "code": self.code, "message": self.message, **_place_json(self.span), "expected": self.expected or None,
            "notes": [{"message": message, **_place_json(place)} for message, place in self.notes],
            "help": self.help or None,
        }  # fmt: skip


class PlanWarning(UserWarning):
    """A statement of a plan has no effect; the text shows the statement."""


def _place_json(span: Span | None) -> dict[str, object]:
    if span is None:
        return {"file": None, "line": None, "column": None}
    return {"file": span.file, "line": span.line, "column": span.column}


def rendered(
    head: str,
    span: Span | None,
    expected: str = "",
    notes: tuple[tuple[str, Span | None], ...] = (),
    help: str = "",
) -> str:
    """An error or a warning as text: position and head, source line with carets, notes, help.

    >>> print(rendered("warning: this line has no effect", Span("a.plan", 2, 1, 5, "zero 1")))
    a.plan:2:1: warning: this line has no effect
        2 | zero 1
          | ^^^^^
    """
    lines = [f"{span}: {head}" if span else head]
    if span and span.text:
        lines.append(f"{span.line:>5} | {span.text}")
        carets = "^" * max(1, span.length)
        lines.append(f"      | {' ' * (span.column - 1)}{carets} {expected}".rstrip())
    elif expected:
        lines.append(expected if expected.startswith("expected ") else f"expected: {expected}")
    for message, place in notes:
        lines.append(f"note: {message}" + (f": {place}" if place else ""))
    if help:
        lines.append(f"help: {help}")
    return printable("\n".join(lines))
