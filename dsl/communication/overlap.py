"""`overlap { level 1 }`: which communication runs beside other work, and on which lanes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from lark import Token, Tree

from ...diagnostics import Span
from ..error import OverlapCode, PlanError, read_items, unexpected_word
from ..source import Places, Source, tokens
from ..spelling import byte_count, bytes_text, did_you_mean, listed, shortened

KINDS = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "permute", "send")
"""What may be hidden: collectives by kind, and the messages between the stages of a pipeline."""
ALL_KINDS = ",".join(KINDS)
"""As an option of passes."""
LEVELS = ("0", "1")
ALL_GATHER_MATMUL, MATMUL_REDUCE_SCATTER = "all_gather+matmul", "matmul+reduce_scatter"
RINGS = (ALL_GATHER_MATMUL, MATMUL_REDUCE_SCATTER)
"""Fusions of a collective and the products that it brings operands to, or whose sum it takes."""
NORMS = ("all_reduce+rms_norm", "all_reduce+layer_norm")
"""Fusions of a sum and the norm behind it."""
FUSIONS = (*RINGS, *NORMS)
COMPUTE, COMM = "compute", "comm"
"""The lanes that every program has."""

_BY_COST = ("2", "auto")
_LATER_FUSIONS = {
    "all_to_all+grouped_matmul": "write hide all_to_all: exchanges run beside what does not need them",
}
_LATER = {
    "share": "name a lane: all lanes share a device alike",
}
"""Items of the language that are not built, with what there is."""

_refused = partial(unexpected_word, OverlapCode.BAD_OVERLAP)


@dataclass(frozen=True)
class Overlap:
    """An `overlap` statement.

    Raises PlanError for a level beside `hide` or `fuse` (E0142).

    >>> print(Overlap(hide=("all_gather",), lanes=("compute", "tp")))
    overlap { hide all_gather  lanes compute, tp }
    """

    level: int | None = None
    """0: communication starts and is waited for in place; 1: beside what does not need it; None: as `hide` says."""
    hide: tuple[str, ...] = ()
    """The kinds of communication that are moved, in place of a level; the others stay in place."""
    fuse: tuple[str, ...] = ()
    """The fusions, in place of a level; without `hide` all kinds are moved."""
    lanes: tuple[str, ...] = ()
    """Lanes: `compute`, `comm`, and axes whose collectives have a lane of their own; empty: those two."""
    growth: float = 0.0
    """By how many percent the peak of a rank may exceed what it needs with all communication in place."""
    memory: int | None = None
    """The bytes that a rank may need, in place of that."""
    places: Places = field(default=Places(), compare=False, repr=False)
    """Source spans of the statement, and of its lanes as axes."""
    spans: Mapping[str, Span] = field(default_factory=dict, compare=False, repr=False, hash=False)
    """Source spans of the items, by keyword."""

    def __post_init__(self) -> None:
        by_hand = [item for item, said in (("hide", self.hide), ("fuse", self.fuse)) if said]
        if self.level is not None and by_hand:
            raise PlanError(
                OverlapCode.BAD_OVERLAP,
                f'"level {self.level}" and "{by_hand[0]}" exclude each other: a level says what is hidden and fused',
                span=self.spans.get(by_hand[0], self.span),
                notes=(("the level is here", self.spans.get("level")),),
                help="keep one of them",
            )
        if self.level is None and not by_hand:
            object.__setattr__(self, "level", 1)

    @property
    def span(self) -> Span | None:
        """The whole statement's place."""
        return self.places.statement

    @property
    def moved(self) -> tuple[str, ...]:
        """The kinds of communication that are moved."""
        kinds = () if self.level == 0 else self.hide or KINDS
        rings = any(fusion in RINGS for fusion in self.fuse)
        return (*kinds, "permute") if rings and "permute" not in kinds else kinds  # the hops of rings

    @property
    def own_lanes(self) -> tuple[str, ...]:
        """The axes whose collectives have a lane of their own."""
        return tuple(lane for lane in self.lanes if lane not in (COMPUTE, COMM))

    def __str__(self) -> str:
        items = [] if self.level is None else [f"level {self.level}"]
        items += [f"hide {', '.join(self.hide)}"] if self.hide else []
        items += [f"fuse {', '.join(self.fuse)}"] if self.fuse else []
        items += [f"lanes {', '.join(self.lanes)}"] if self.lanes else []
        items += [f"memory +{self.growth:g}%"] if self.growth else []
        items += [f"memory {bytes_text(self.memory)}"] if self.memory is not None else []
        return f"overlap {{ {'  '.join(items)} }}"


def read_overlap(tree: Tree[Token], source: Source) -> Overlap:
    """The value of an `overlap` statement. Raises PlanError for items and values that do not exist (E0142)."""
    keyword, end = tokens(tree, "OVERLAP", "RBRACE")
    fields: dict[str, object] = {}
    spans: dict[str, Span] = {}
    lanes: tuple[Span, ...] = ()
    clauses, known = tree.find_data("overlap_clause"), tuple(_READERS)
    for name, item, values, span in read_items(clauses, OverlapCode.BAD_OVERLAP, "overlap has", known, source, _LATER):
        spans[name] = span
        if name == "memory":
            fields |= _read_memory(item, values, source)
        else:
            fields[name] = _READERS[name](item, values, source)
        if name == "lanes":
            lanes = tuple(source.span_of(value) for value in values)
    places = Places(source.span_of(keyword, end), axes=lanes)
    return Overlap(places=places, spans=spans, **fields)  # type: ignore[arg-type]  # by `_READERS`


def _read_level(item: Token, values: Sequence[Token], source: Source) -> int:
    if len(values) > 1:
        raise _refused(f'"level" cannot be "{shortened(values[1])}"', values[1], ("one value",), source)
    [value] = values
    if value in _BY_COST:
        raise PlanError(
            OverlapCode.BAD_OVERLAP,
            f'"level {value}" chooses by cost, and there is no cost model yet',
            span=source.span_of(value),
            expected=f"expected {listed(LEVELS)}",
            help='write the items by hand: "hide" names the kinds of communication, "lanes" the lanes',
        )
    if value not in LEVELS:
        raise _refused(f'there is no level "{shortened(value)}"', value, LEVELS, source)
    return int(value)


def _read_kinds(item: Token, values: Sequence[Token], source: Source) -> tuple[str, ...]:
    for index, value in enumerate(values):
        if value not in KINDS:
            raise _refused(f'"hide" has no kind "{shortened(value)}"', value, KINDS, source)
        _check_once("kind", value, values[:index], source)
    return tuple(map(str, values))


def _read_fusions(item: Token, values: Sequence[Token], source: Source) -> tuple[str, ...]:
    for index, value in enumerate(values):
        if value in _LATER_FUSIONS:
            message = f'overlap cannot fuse "{value}" yet'
            help = _LATER_FUSIONS[str(value)]
            raise PlanError(OverlapCode.BAD_OVERLAP, message, span=source.span_of(value), help=help)
        if value not in FUSIONS:
            raise _refused(f'there is no fusion "{shortened(value)}"', value, FUSIONS, source)
        _check_once("fusion", value, values[:index], source)
    return tuple(map(str, values))


def _read_lanes(item: Token, values: Sequence[Token], source: Source) -> tuple[str, ...]:
    for index, value in enumerate(values):
        _check_once("lane", value, values[:index], source)
    return tuple(map(str, values))


def _read_memory(item: Token, values: Sequence[Token], source: Source) -> dict[str, object]:
    value = values[-1]
    if len(values) == 1 and (percent := re.fullmatch(r"\+([0-9]{1,4}(\.[0-9]{1,3})?)%", value)):
        return {"growth": float(percent[1])}
    size = byte_count(value)
    if size is None or len(values) > 1:
        expected = ("a percentage such as +5%", "bytes with a unit, such as 60GB")
        raise _refused(f'"memory" cannot be "{shortened(value)}"', value, expected, source)
    return {"memory": size}


def _check_once(what: str, value: Token, before: Sequence[Token], source: Source) -> None:
    if value in before:
        message = f'the {what} "{shortened(value)}" is named twice'
        raise PlanError(OverlapCode.BAD_OVERLAP, message, span=source.span_of(value), help="keep one of them")


_READERS: dict[str, Callable[[Token, Sequence[Token], Source], object]] = {
    "level": _read_level,
    "hide": _read_kinds,
    "fuse": _read_fusions,
    "lanes": _read_lanes,
    "memory": _read_memory,
}
"""By item, the function that reads its values; the field has the item's name, but for `memory`."""


def check_overlap(statements: Sequence[object], axes: Sequence[str]) -> None:
    """Raises PlanError E0142 for a second `overlap`, and for a lane that is neither built in nor an axis."""
    found = [statement for statement in statements if isinstance(statement, Overlap)]
    if len(found) > 1:
        raise PlanError(
            OverlapCode.BAD_OVERLAP,
            'the plan has a second "overlap"',
            span=found[1].span,
            notes=(("the first is here", found[0].span),),
            help="merge the two statements",
        )
    lanes = (COMPUTE, COMM, *axes)
    for statement in found:
        for index, lane in enumerate(statement.lanes):
            if lane not in lanes:
                raise PlanError(
                    OverlapCode.BAD_OVERLAP,
                    f'no operation is on a lane "{lane}"',
                    span=statement.places.axis(index),
                    expected=f"expected {listed(lanes)}",
                    help=did_you_mean(lane, lanes) or "an axis names the lane of the collectives over it alone",
                )
