"""The one kind of error a user sees: what was found, what was expected, where, and a way out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """A place in a text file: 1-based line and column, and how many characters it covers."""

    file: str
    line: int
    column: int = 1
    length: int = 1
    text: str = ""
    """The whole source line, without its newline; empty when it is not known."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class StrettoError(Exception):
    """A mistake in what the user gave, shown without a traceback (exit code 1).

    `code` is "E" and four digits, listed in `docs/errors.md`. `notes` are (message, place) pairs that point elsewhere,
    `help` is one way out. Subclasses name the kind of input that was wrong.
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
        """The text shown to a person: place, code, message, the source line with carets, notes and help."""
        where = f"{self.span}: " if self.span else ""
        lines = [f"{where}error[{self.code}]: {self.message}"]
        if self.span and self.span.text:
            lines.append(f"{self.span.line:>5} | {self.span.text}")
            carets = "^" * max(1, self.span.length)
            lines.append(f"      | {' ' * (self.span.column - 1)}{carets} {self.expected}".rstrip())
        elif self.expected:
            lines.append(f"expected: {self.expected}")
        for message, place in self.notes:
            lines.append(f"note: {message}" + (f": {place}" if place else ""))
        if self.help:
            lines.append(f"help: {self.help}")
        return "\n".join(lines)
