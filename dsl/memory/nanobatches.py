"""`split tokens into 2 { order interleave }`: layers run on parts of the tokens, or of the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

from lark import Token, Tree

from ...diagnostics import Span
from ..error import MemoryCode, PlanError, check_patterns, read_items, unexpected_word
from ..source import Places, Source, tokens
from ..spelling import listed, shortened

SUBJECTS = ("tokens", "batch")
MAX_NANOBATCHES = 64
MAX_SIZE = 2**40
"""The largest number in `sizes` and `from`."""

_refused = partial(unexpected_word, MemoryCode.BAD_SPLIT)


class OrderOfNanobatches(StrEnum):
    """How nanobatches follow each other."""

    SEQUENCE = "sequence"
    """One after the other: what one needs lives as long as it."""
    INTERLEAVE = "interleave"
    """By turns: a collective of one is under way while another computes."""


@dataclass(frozen=True)
class Nanobatches:
    """A `split` statement about tokens or the batch.

    Raises PlanError for an impossible number or sizes (E0137), and for a bad pattern (E0113).

    >>> print(Nanobatches("tokens", 2, OrderOfNanobatches.INTERLEAVE, least=1024))
    split tokens into 2 { order interleave  from 1024 }
    """

    subject: str
    count: int
    order: OrderOfNanobatches = OrderOfNanobatches.SEQUENCE
    sizes: tuple[int, ...] = ()
    """The ratio of the nanobatches' sizes; empty: they are as even as can be."""
    least: int = 0
    """With fewer tokens, or samples, on a rank the statement does nothing."""
    patterns: tuple[str, ...] = ()
    """Globs of the modules that run on nanobatches; empty: all layers."""
    places: Places = field(default=Places(), compare=False, repr=False)
    """Source spans of the statement; `layout` is that of the number, `patterns` has that of the subject first."""
    spans: Mapping[str, Span] = field(default_factory=dict, compare=False, repr=False, hash=False)
    """Source spans of the items, by keyword."""

    def __post_init__(self) -> None:
        check_patterns(self.patterns, Places(self.places.statement, patterns=self.places.patterns[1:]))
        if not 2 <= self.count <= MAX_NANOBATCHES:
            raise PlanError(
                MemoryCode.BAD_SPLIT,
                f"the {self.subject} cannot be split into {self.count}",
                span=self.places.layout,
                expected=f"expected 2 to {MAX_NANOBATCHES}",
            )
        if self.sizes and (len(self.sizes) != self.count or not all(1 <= size <= MAX_SIZE for size in self.sizes)):
            raise PlanError(
                MemoryCode.BAD_SPLIT,
                f'"sizes" are {listed(list(map(str, self.sizes)))} for {self.count} nanobatches',
                span=self.spans.get("sizes", self.span),
                expected=f"expected {self.count} numbers from 1 to {MAX_SIZE}",
                help="leave sizes out for even nanobatches",
            )

    @property
    def span(self) -> Span | None:
        """The whole statement's place."""
        return self.places.statement

    def __str__(self) -> str:
        items = [f"order {self.order}"] if self.order is not OrderOfNanobatches.SEQUENCE else []
        items += [f"sizes {', '.join(map(str, self.sizes))}"] if self.sizes else []
        items += [f"from {self.least}"] if self.least else []
        items += ["in " + ", ".join(f'"{pattern}"' for pattern in self.patterns)] if self.patterns else []
        block = f" {{ {'  '.join(items)} }}" if items else ""
        return f"split {self.subject} into {self.count}{block}"


def read_nanobatches(tree: Tree[Token], source: Source, subject: Token, count: int) -> Nanobatches:
    """The value of a `split` statement about tokens or the batch. Raises PlanError for bad items (E0137)."""
    keyword, number, *ends = tokens(tree, "SPLIT", "NUMBER", "RBRACE")
    fields: dict[str, object] = {}
    spans: dict[str, Span] = {}
    places = [source.span_of(subject)]
    clauses = tree.find_data("split_clause")
    for name, item, values, span in read_items(clauses, MemoryCode.BAD_SPLIT, "split has", tuple(_READERS), source):
        spans[name] = span
        attribute, read = _READERS[name]
        fields[attribute] = read(item, values, source)
        places += [source.span_of(value) for value in values if name == "in"]
    where = Places(source.span_of(keyword, ends[0] if ends else number), source.span_of(number), (), tuple(places))
    return Nanobatches(str(subject), count, places=where, spans=spans, **fields)  # type: ignore[arg-type]  # by `_READERS`


def _read_order(item: Token, values: Sequence[Token], source: Source) -> OrderOfNanobatches:
    choices = tuple(OrderOfNanobatches)
    if len(values) > 1 or values[0] not in choices:
        raise _refused(f'"{item}" cannot be "{shortened(values[-1])}"', values[-1], choices, source)
    return OrderOfNanobatches(str(values[0]))


def _read_numbers(item: Token, values: Sequence[Token], source: Source) -> tuple[int, ...]:
    for value in values:
        if not value.isdecimal() or len(value) > len(str(MAX_SIZE)):
            raise _refused(f'"{item}" cannot be "{shortened(value)}"', value, ("a number",), source)
    return tuple(int(value) for value in values)


def _read_least(item: Token, values: Sequence[Token], source: Source) -> int:
    if len(values) > 1:
        raise _refused(f'"{item}" cannot be "{shortened(values[-1])}"', values[-1], ("one number",), source)
    [least] = _read_numbers(item, values, source)
    return least


def _read_patterns(item: Token, values: Sequence[Token], source: Source) -> tuple[str, ...]:
    for value in values:
        if value.type != "PATTERN":
            raise _refused(f'"{item}" cannot be "{shortened(value)}"', value, ("a pattern in quotes",), source)
    return tuple(str(value[1:-1]) for value in values)


_READERS: dict[str, tuple[str, Callable[[Token, Sequence[Token], Source], object]]] = {
    "order": ("order", _read_order),
    "sizes": ("sizes", _read_numbers),
    "from": ("least", _read_least),
    "in": ("patterns", _read_patterns),
}
"""By item, its field and the function that reads its value."""
