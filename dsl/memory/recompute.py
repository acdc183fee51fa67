"""`recompute "*.mlp", attention`: what the backward computes again, so that it is not kept from the forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from lark import Token, Tree

from ...diagnostics import Span
from ..error import MemoryCode, PlanError, check_patterns, read_items, unexpected_word
from ..source import Places, Source, tokens
from ..spelling import byte_count, bytes_text, shortened

AUTO = "auto"
"""The word that leaves the choice to the pass."""

_refused = partial(unexpected_word, MemoryCode.BAD_RECOMPUTE)


@dataclass(frozen=True)
class Recompute:
    """A `recompute` statement.

    Raises PlanError for a bad pattern (E0113), and for `auto` without `memory` or beside others (E0135).

    >>> print(Recompute(("*.mlp",), ("attention",), recomputes_collectives=True))
    recompute "*.mlp", attention { collectives again }
    """

    patterns: tuple[str, ...]
    """Globs of modules: the backward computes again, from a module's inputs, what it reads of the module's inside."""
    kinds: tuple[str, ...] = ()
    """Kinds of operations, such as `attention` or `gelu`, of which no result is kept."""
    exceptions: tuple[str, ...] = ()
    """Kinds of operations that are not computed again."""
    recomputes_collectives: bool = False
    """Whether collectives run again; else their results are kept."""
    memory: int | None = None
    """With `auto` as its one kind: the bytes that a rank may need; what is computed again is chosen to fit them."""
    places: Places = field(default=Places(), compare=False, repr=False)
    """Source spans of the statement, and of its globs and kinds in this order."""
    spans: Mapping[str, Span] = field(default_factory=dict, compare=False, repr=False, hash=False)
    """Source spans of the items, by keyword."""

    def __post_init__(self) -> None:
        check_patterns(self.patterns, self.places)
        if AUTO in self.kinds and (self.patterns or len(self.kinds) > 1):
            message = f'"{AUTO}" chooses what is computed again, so it stands alone'
            help = "write the others in a statement of their own"
            raise PlanError(MemoryCode.BAD_RECOMPUTE, message, span=self.kind_span(AUTO), help=help)
        if self.is_automatic is (self.memory is None):
            message = (
                f'"{AUTO}" needs the bytes that a rank may need' if self.memory is None else f'"memory" is for "{AUTO}"'
            )
            help = "write recompute auto { memory 60GB }"
            span = self.kind_span(AUTO) if self.memory is None else self.spans.get("memory", self.span)
            raise PlanError(MemoryCode.BAD_RECOMPUTE, message, span=span, help=help)

    @property
    def is_automatic(self) -> bool:
        """Whether what is computed again is chosen to fit into `memory`."""
        return self.kinds == (AUTO,)

    @property
    def span(self) -> Span | None:
        """The whole statement's place."""
        return self.places.statement

    def kind_span(self, kind: str) -> Span | None:
        """The place of a kind that the statement names."""
        if kind in self.kinds:
            return self.places.pattern(len(self.patterns) + self.kinds.index(kind))
        return self.spans.get("except", self.span)

    def __str__(self) -> str:
        items = [f"memory {bytes_text(self.memory)}"] if self.memory is not None else []
        items += [f"except {', '.join(self.exceptions)}"] if self.exceptions else []
        items += ["collectives again"] if self.recomputes_collectives else []
        block = f" {{ {'  '.join(items)} }}" if items else ""
        subjects = [*(f'"{pattern}"' for pattern in self.patterns), *self.kinds]
        return f"recompute {', '.join(subjects)}{block}"


def read_recompute(tree: Tree[Token], source: Source) -> Recompute:
    """The value of a `recompute` statement. Raises PlanError for items and values that do not exist (E0135)."""
    keyword, *ends = tokens(tree, "RECOMPUTE", "RBRACE")
    subjects = [token for each in tree.find_data("recomputed") for token in tokens(each, "PATTERN", "KIND")]
    subjects.sort(key=lambda token: token.type == "KIND")
    fields: dict[str, object] = {}
    spans: dict[str, Span] = {}
    clauses, known = tree.find_data("recompute_clause"), tuple(_READERS)
    for name, item, values, span in read_items(clauses, MemoryCode.BAD_RECOMPUTE, "recompute has", known, source):
        spans[name] = span
        attribute, read = _READERS[name]
        fields[attribute] = read(item, values, source)
    last = ends[0] if ends else max(subjects, key=lambda token: token.start_pos or 0)
    places = Places(source.span_of(keyword, last), patterns=tuple(source.span_of(subject) for subject in subjects))
    return Recompute(
        tuple(str(subject[1:-1]) for subject in subjects if subject.type == "PATTERN"),
        tuple(str(subject) for subject in subjects if subject.type == "KIND"),
        places=places,
        spans=spans,
        **fields,  # type: ignore[arg-type]  # by `_READERS`
    )


def _read_kinds(item: Token, values: Sequence[Token], source: Source) -> tuple[str, ...]:
    return tuple(map(str, values))


def _read_memory(item: Token, values: Sequence[Token], source: Source) -> int:
    size = byte_count(values[0])
    if size is None or len(values) > 1:
        wrong = values[-1]
        expected = ("bytes with a unit, such as 60GB",)
        raise _refused(f'"{item}" cannot be "{shortened(wrong)}"', wrong, expected, source)
    return size


def _read_collectives(item: Token, values: Sequence[Token], source: Source) -> bool:
    choices = ("again", "kept")
    if len(values) > 1 or values[0] not in choices:
        wrong = values[-1]
        raise _refused(f'"{item}" cannot be "{shortened(wrong)}"', wrong, choices, source)
    return str(values[0]) == "again"


_READERS: dict[str, tuple[str, Callable[[Token, Sequence[Token], Source], object]]] = {
    "memory": ("memory", _read_memory),
    "except": ("exceptions", _read_kinds),
    "collectives": ("recomputes_collectives", _read_collectives),
}
"""By item, its field and the function that reads its value."""
