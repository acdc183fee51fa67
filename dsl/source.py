"""The text of a plan and the places in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from lark import Token, Tree

from ..diagnostics import Span


@dataclass(frozen=True)
class Source:
    """A plan's text, and the name it goes by in messages."""

    file: str
    text: str

    @cached_property
    def lines(self) -> tuple[str, ...]:
        return tuple(self.text.split("\n"))

    def span(self, line: int, column: int, length: int) -> Span:
        """The place of `length` characters from `column` of `line`, both counted from 1."""
        return Span(self.file, line, column, max(1, length), self._shown(line))

    def of(self, first: Token, last: Token | None = None) -> Span:
        """The place from one token to another; where they stand on two lines, to the end of the first line."""
        line, column = first.line or 1, first.column or 1
        end = last or first
        if end.end_line == line:
            return self.span(line, column, (end.end_column or column) - column)
        return self.span(line, column, len(self._shown(line)) - column + 1)

    def _shown(self, line: int) -> str:
        """The line with a blank for each character that would move the caret, or the terminal's cursor."""
        text = self.lines[line - 1] if line <= len(self.lines) else ""
        return "".join(char if char.isprintable() else " " for char in text).rstrip()


@dataclass(frozen=True)
class Places:
    """Where the parts of a statement stand; all of it unknown for a statement that was made in Python."""

    statement: Span | None = None
    layout: Span | None = None
    axes: tuple[Span, ...] = ()
    patterns: tuple[Span, ...] = ()

    def axis(self, index: int) -> Span | None:
        """The place of the axis at `index`, else of the statement."""
        return self.axes[index] if index < len(self.axes) else self.statement

    def pattern(self, index: int) -> Span | None:
        """The place of the pattern at `index`, else of the statement."""
        return self.patterns[index] if index < len(self.patterns) else self.statement


def tokens(tree: Tree[Token], *types: str) -> list[Token]:
    """The tokens of some types below the tree, in the order of the text."""
    return list(tree.scan_values(lambda leaf: isinstance(leaf, Token) and leaf.type in types))
