"""`split loss into 8`: the head and the loss are computed in chunks of rows, so that the scores are never whole."""

from __future__ import annotations

from dataclasses import dataclass, field

from lark import Token, Tree

from ...diagnostics import Span
from ..error import MemoryCode, PlanError
from ..mesh import read_number
from ..source import Places, Source, tokens
from ..spelling import did_you_mean, listed, shortened
from . import nanobatches
from .nanobatches import Nanobatches, read_nanobatches

SUBJECTS = ("loss",)
_ALL = (*SUBJECTS, *nanobatches.SUBJECTS)
"""Of both kinds of statements that begin with this word."""
MAX_CHUNKS = 4096


@dataclass(frozen=True)
class Split:
    """A `split loss` statement.

    Raises PlanError for another subject or number (E0137).

    >>> print(Split("loss", 8))
    split loss into 8
    """

    subject: str
    chunks: int
    places: Places = field(default=Places(), compare=False, repr=False)
    """Source spans of the statement; `layout` is that of the number, the one pattern that of the subject."""

    def __post_init__(self) -> None:
        if self.subject not in SUBJECTS:
            raise PlanError(
                MemoryCode.BAD_SPLIT,
                f'"{shortened(self.subject)}" cannot be split',
                span=self.places.pattern(0),
                expected=f"expected {listed(_ALL)}",
                help=did_you_mean(self.subject, _ALL),
            )
        if not 2 <= self.chunks <= MAX_CHUNKS:
            raise PlanError(
                MemoryCode.BAD_SPLIT,
                f"a loss cannot be computed in {self.chunks} chunks",
                span=self.places.layout,
                expected=f"expected 2 to {MAX_CHUNKS}",
            )

    @property
    def span(self) -> Span | None:
        """The whole statement's place."""
        return self.places.statement

    def __str__(self) -> str:
        return f"split {self.subject} into {self.chunks}"


def read_split(tree: Tree[Token], source: Source) -> Split | Nanobatches:
    """The value of a `split` statement. Raises PlanError as the value does, and for items of `split loss` (E0137)."""
    keyword, subject, number, *items = tokens(tree, "SPLIT", "SPLIT_SUBJECT", "NUMBER", "SPLIT_CLAUSE")
    if subject in nanobatches.SUBJECTS:
        return read_nanobatches(tree, source, subject, read_number(number))
    spans = source.span_of(keyword, number), source.span_of(number)
    split = Split(str(subject), read_number(number), Places(*spans, patterns=(source.span_of(subject),)))
    if items:
        message, help = f'split {subject} has no item "{shortened(items[0])}"', "leave the braces out"
        raise PlanError(MemoryCode.BAD_SPLIT, message, span=source.span_of(items[0]), help=help)
    return split
