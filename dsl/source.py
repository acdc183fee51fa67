"""The text of a plan or schedule, and source spans in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from lark import Token, Tree

from ..diagnostics import Span


@dataclass(frozen=True)
class Source:
    """A text with its file name in messages."""

    file: str
    text: str

    @cached_property
    def lines(self) -> tuple[str, ...]:
        return tuple(self.text.split("\n"))

    def span(self, line: int, column: int, length: int) -> Span:
        """The span of `length` characters from `column` of `line`, both 1-based."""
        return Span(self.file, line, column, max(1, length), self._shown(line))

    def span_of(self, first: Token, last: Token | None = None) -> Span:
        """The span from one token to another, cut off at the end of the first token's line."""
        line, column = first.line or 1, first.column or 1
        end = last or first
        if end.end_line == line:
            return self.span(line, column, (end.end_column or column) - column)
        return self.span(line, column, len(self._shown(line)) - column + 1)

    def _shown(self, line: int) -> str:
        """The line with a blank for each unprintable character, so that carets stay aligned."""
        text = self.lines[line - 1] if line <= len(self.lines) else ""
        return "".join(char if char.isprintable() else " " for char in text).rstrip()


@dataclass(frozen=True)
class Places:
    """The source spans of a statement's parts; empty for a statement that was built in Python."""

    statement: Span | None = None
    layout: Span | None = None
    axes: tuple[Span, ...] = ()
    patterns: tuple[Span, ...] = ()

    def axis(self, index: int) -> Span | None:
        """The span of an axis, else of the statement."""
        return self.axes[index] if index < len(self.axes) else self.statement

    def pattern(self, index: int) -> Span | None:
        """The span of a pattern, else of the statement."""
        return self.patterns[index] if index < len(self.patterns) else self.statement


def tokens(tree: Tree[Token], *types: str) -> list[Token]:
    """The tokens of the given types in a tree, in the order of the text."""
    return list(tree.scan_values(lambda leaf: isinstance(leaf, Token) and leaf.type in types))
