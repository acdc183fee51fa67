"""`experts "*.experts" over ep { bound 1.5 }`: experts are cut over axes, and rows go to the ranks of their experts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import ClassVar

from lark import Token, Tree

from ...diagnostics import Span
from ..error import PlanError, RoutingCode, check_axes_differ, check_patterns, read_items, unexpected_word
from ..source import Places, Source, tokens
from ..spelling import shape_text, shortened

_LATER = {
    "move": "tokens are moved to the ranks of their experts; to move weights instead, leave experts out, and say: "
    'zero 3 over ep { only "*.experts" }',
    "inner": 'shard cuts the other dims of experts: shard "*.experts.up" dim 1 over tp, and '
    'shard "*.experts.down" dim 2 over tp',
    "chunks": "all rows of a layer go at once",
    "order": "experts lie in the model's order",
}
"""Items of the language that are not built, with what there is."""
_ITEMS = ("capacity", "bound")

_refused = partial(unexpected_word, RoutingCode.BAD_EXPERTS)


@dataclass(frozen=True)
class Experts:
    """An `experts` statement: parameters (experts, ..), each cut on dim 0.

    Raises PlanError for a bad pattern (E0113), an axis named twice (E0112), and a bound below the even share (E0140).

    >>> print(Experts(("*.experts",), ("dp", "cp"), bound=1.5))
    experts "*.experts" over dp, cp { bound 1.5 }
    """

    subject: ClassVar[str] = "experts"
    patterns: tuple[str, ...]
    """Globs of parameters, or of modules that own them."""
    axes: tuple[str, ...]
    """Outermost first."""
    bound: float | None = None
    """How many times the even share of rows a rank has room for; None: room for all rows of the group."""
    places: Places = field(default=Places(), compare=False, repr=False)
    """Source spans of the statement, its axes and patterns."""
    spans: Mapping[str, Span] = field(default_factory=dict, compare=False, repr=False, hash=False)
    """Source spans of the items, by keyword."""

    def __post_init__(self) -> None:
        check_axes_differ(self.axes, self.places)
        check_patterns(self.patterns, self.places)
        if self.bound is not None and self.bound < 1:
            raise PlanError(
                RoutingCode.BAD_EXPERTS,
                f"a rank has no room for {self.bound:g} times the even share of rows: some rank gets the whole of it",
                span=self.spans.get("bound", self.span),
                expected="expected a number of at least 1",
            )

    @property
    def span(self) -> Span | None:
        """The whole statement's place."""
        return self.places.statement

    def cuts(self, name: str, shape: Sequence[int], sizes: Mapping[str, int]) -> dict[str, int]:
        """By axis, the dim of a parameter that it shards. Raises PlanError E0140 where ranks cannot share experts."""
        ranks = prod(sizes[axis] for axis in self.axes)
        if len(shape) < 2 or shape[0] % ranks:
            count = f"{shape[0]} experts" if len(shape) > 1 else "no experts"
            raise PlanError(
                RoutingCode.BAD_EXPERTS,
                f'"{name}" {shape_text(tuple(shape))} has {count}, which {ranks} ranks over {", ".join(self.axes)} '
                "cannot share evenly",
                span=self.span,
                expected=f"expected parameters (experts, ..) with a multiple of {ranks} experts",
                help="make the axes smaller, or match the experts' own parameters",
            )
        return dict.fromkeys(self.axes, 0)

    def __str__(self) -> str:
        names = ", ".join(f'"{pattern}"' for pattern in self.patterns)
        block = "" if self.bound is None else f" {{ bound {str(self.bound).removesuffix('.0')} }}"
        return f"experts {names} over {', '.join(self.axes)}{block}"


def read_experts(tree: Tree[Token], source: Source) -> Experts:
    """The value of an `experts` statement. Raises PlanError for items and values that do not exist (E0140)."""
    keyword, *ends = tokens(tree, "EXPERTS", "RBRACE")
    patterns, axes = tokens(tree, "PATTERN"), tokens(tree, "AXIS")
    spans: dict[str, Span] = {}
    bound: float | None = None
    clauses = tree.find_data("experts_clause")
    for name, item, (value,), span in read_items(
        clauses, RoutingCode.BAD_EXPERTS, "experts have", _ITEMS, source, _LATER
    ):
        spans[name] = span
        if item == "bound":
            bound = _number(item, value, source)
        elif value != "none":
            raise PlanError(
                RoutingCode.BAD_EXPERTS,
                "experts cannot drop rows yet: a finite capacity changes the function",
                span=source.span_of(value),
                expected="expected none",
                help="state a bound instead: a run that exceeds it stops, and nothing is dropped",
            )
    places = Places(
        source.span_of(keyword, (ends or axes)[-1]),
        None,
        tuple(source.span_of(axis) for axis in axes),
        tuple(source.span_of(pattern) for pattern in patterns),
    )
    names = tuple(str(pattern[1:-1]) for pattern in patterns)
    return Experts(names, tuple(str(axis) for axis in axes), bound, places, spans)


def _number(item: Token, value: Token, source: Source) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value):
        raise _refused(f'"{item}" cannot be "{shortened(value)}"', value, ("a number such as 1.5",), source)
    return float(value)
