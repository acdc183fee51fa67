"""`experts "*.experts" over ep { bound 1.5 }`: experts are cut over axes, and rows go to the ranks of their experts."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from math import prod
from typing import ClassVar

from lark import Token, Tree

from ...diagnostics import Span
from .. import globs
from ..error import PlanError, RoutingCode, check_axes_differ, check_patterns, read_items, unexpected_word
from ..source import Places, Source, tokens
from ..spelling import shape_text, shortened

_LATER = {
    "inner": 'shard cuts the other dims of experts: shard "*.experts.up" dim 1 over tp, and '
    'shard "*.experts.down" dim 2 over tp',
    "chunks": "all rows of a layer go at once",
    "order": "experts lie in the model's order",
}
"""Items of the language that are not built, with what there is."""
_ITEMS = ("capacity", "bound", "move")


class Move(StrEnum):
    """What goes from rank to rank so that a row meets its expert."""

    TOKENS = "tokens"
    """Rows go to the rank of their expert, and come back."""
    WEIGHTS = "weights"
    """Each rank gathers the experts of the others before they are used; rows stay."""
    AUTO = "auto"
    """Whichever sends fewer bytes; undecided until the compiler has counted them."""


_refused = partial(unexpected_word, RoutingCode.BAD_EXPERTS)


@dataclass(frozen=True)
class Experts:
    """An `experts` statement: parameters (experts, ..), each cut on dim 0, or lists of modules, one for each expert.

    Raises PlanError for a bad pattern (E0113), an axis named twice (E0112), and a bound below the even share (E0140).

    >>> print(Experts(("*.experts",), ("dp", "cp"), bound=1.5))
    experts "*.experts" over dp, cp { bound 1.5 }
    """

    subject: ClassVar[str] = "experts"
    patterns: tuple[str, ...]
    """Globs of parameters, of modules that own them, or of lists of modules."""
    axes: tuple[str, ...]
    """Outermost first."""
    bound: float | None = None
    """How many times the even share of rows a rank has room for; None: room for all rows of the group."""
    capacity: float | None = None
    """How many times the even share of rows an expert takes: later ones are dropped. None: it takes all."""
    move: Move = Move.TOKENS
    """What goes from rank to rank."""
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
        if self.capacity is not None and self.capacity <= 0:
            raise PlanError(
                RoutingCode.BAD_EXPERTS,
                f"an expert that takes {self.capacity:g} times the even share of rows computes nothing",
                span=self.spans.get("capacity", self.span),
                expected="expected none, or a number above 0 such as 1.25",
            )

    def most_rows(self, rows: int, experts: int) -> int | None:
        """The rows that an expert takes, of `rows` for all experts; None: all.

        >>> Experts(("*.experts",), ("ep",), capacity=1.25).most_rows(64, 8)
        10
        """
        if self.capacity is None:
            return None
        millionths = round(self.capacity * 10**6)
        return -(-millionths * rows // (experts * 10**6))

    @property
    def span(self) -> Span | None:
        """The whole statement's place."""
        return self.places.statement

    def is_of_list(self, name: str) -> bool:
        """Whether a pattern names a list of modules that a parameter of this name is inside."""
        return any(names_list(pattern, name) for pattern in self.patterns)

    def cuts(
        self, name: str, shape: Sequence[int], sizes: Mapping[str, int], taken: Collection[int] = ()
    ) -> dict[str, int]:
        """By axis, the dim of a parameter that it shards. Raises PlanError E0140 where ranks cannot share experts.

        Of a parameter that is one expert's, each rank has a part: of the first dim that ranks divide and that is not
        `taken`. Where there is none, it stays whole.
        """
        ranks = prod(sizes[axis] for axis in self.axes)
        if self.is_of_list(name) and self.capacity is not None:
            raise PlanError(
                RoutingCode.BAD_EXPERTS,
                f'"{name}" is of an expert in a list of modules, whose rows cannot be dropped yet',
                span=self.spans.get("capacity", self.span),
                expected="expected experts without a capacity",
                help="leave capacity out, or keep the experts' matrices in one parameter (experts, out, in)",
            )
        if self.is_of_list(name):
            free = (dim for dim, extent in enumerate(shape) if not extent % ranks and dim not in taken)
            dim = next(free, None)
            return {} if dim is None else dict.fromkeys(self.axes, dim)
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
        items = [
            f"{item} {number:.6f}".rstrip("0").rstrip(".")
            for item, number in (("capacity", self.capacity), ("bound", self.bound))
            if number is not None
        ]
        items += [] if self.move is Move.TOKENS else [f"move {self.move}"]
        block = f" {{ {'  '.join(items)} }}" if items else ""
        return f"experts {names} over {', '.join(self.axes)}{block}"


def names_list(pattern: str, name: str) -> bool:
    """Whether a glob names a list of modules, or all inside it, that a parameter of this name is inside.

    >>> names_list("*.experts", "layers.0.experts.3.up.weight"), names_list("*.experts", "layers.0.experts.up")
    (True, False)
    """
    parts = name.split(".")
    lists = [".".join(parts[:place]) for place, part in enumerate(parts[:-1]) if part.isdecimal()]
    return any(globs.matches(way, each) for way in (pattern, pattern.removesuffix(".*")) for each in lists if way)


def read_experts(tree: Tree[Token], source: Source) -> Experts:
    """The value of an `experts` statement. Raises PlanError for items and values that do not exist (E0140)."""
    keyword, *ends = tokens(tree, "EXPERTS", "RBRACE")
    patterns, axes = tokens(tree, "PATTERN"), tokens(tree, "AXIS")
    spans: dict[str, Span] = {}
    numbers: dict[str, float | None] = {}
    move = Move.TOKENS
    clauses = tree.find_data("experts_clause")
    for name, item, (value,), span in read_items(
        clauses, RoutingCode.BAD_EXPERTS, "experts have", _ITEMS, source, _LATER
    ):
        spans[name] = span
        if item == "move":
            move = _move(value, source)
        elif item == "bound" or value != "none":
            numbers[str(item)] = _number(item, value, source)
    places = Places(
        source.span_of(keyword, (ends or axes)[-1]),
        None,
        tuple(source.span_of(axis) for axis in axes),
        tuple(source.span_of(pattern) for pattern in patterns),
    )
    names = tuple(str(pattern[1:-1]) for pattern in patterns)
    return Experts(names, tuple(str(axis) for axis in axes), **numbers, move=move, places=places, spans=spans)


def _move(value: Token, source: Source) -> Move:
    if value not in [*Move]:
        if value == "least_loaded":
            raise PlanError(
                RoutingCode.BAD_EXPERTS,
                "rows of a busy expert cannot go to other ranks yet",
                span=source.span_of(value),
                expected="expected tokens, weights or auto",
                help="move weights has no busy rank: each computes its own rows; or state a bound or a capacity",
            )
        raise _refused(f'"move" cannot be "{shortened(value)}"', value, tuple(Move), source)
    return Move(value)


def _number(item: Token, value: Token, source: Source) -> float:
    wanted = ("a number such as 1.5", *(("none",) if item == "capacity" else ()))
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value):
        raise _refused(f'"{item}" cannot be "{shortened(value)}"', value, wanted, source)
    return float(value)
