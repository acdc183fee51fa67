"""`pipeline over pp { schedule zb-v  microbatches 8 }`: pipeline parallelism over one axis of the mesh.

`schedule` names a schedule of `schedules/catalogue.py`, which this folder does not know, or one that is written in the
same plan.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from math import isfinite

from lark import Token, Tree

from ..diagnostics import Span
from .error import PlanCode, PlanError, check_patterns, read_items, unexpected_word
from .mesh import read_number
from .precision import FloatFormat
from .source import Places, Source, tokens
from .spelling import listed, shortened

MAX_COUNT = 1_000_000
"""The most microbatches, and the most chunks."""
MICROBATCH_AXIS = "microbatch"
"""The name of the microbatch axis in the IR. Beside a pipeline, no axis of the mesh may have it."""
DEFAULT_SCHEDULE = "1f1b"

_WORD = re.compile(r"-?[A-Za-z0-9_][A-Za-z0-9_.+-]*")

_refused = partial(unexpected_word, PlanCode.BAD_PIPELINE)


class Balance(StrEnum):
    """What is balanced over stages where the plan does not say where they begin."""

    TIME = "time"
    """Estimated time."""
    MEMORY = "memory"
    """Bytes of parameters and activations."""
    LAYERS = "layers"
    """The number of repeated layers."""


@dataclass(frozen=True)
class Pipeline:
    """A `pipeline` statement.

    Raises PlanError for a number out of range and for items that exclude each other (E0124), and for a bad pattern
    (E0113).

    >>> print(Pipeline("pp", 8, "zb-v"))
    pipeline over pp { schedule zb-v  microbatches 8 }
    """

    axis: str
    """The pipeline axis: its ranks hold the stages."""
    microbatches: int
    schedule: str = DEFAULT_SCHEDULE
    """A schedule of the plan, or of the catalogue."""
    chunks: int | None = None
    """Virtual stages per rank; None: the schedule's default."""
    balance: Balance = Balance.TIME
    split: tuple[str, ...] = ()
    """Globs of modules whose first op begins a stage; empty: stages are balanced."""
    times: tuple[float, ...] = ()
    """f, b, w and optionally c, for schedules that are searched: the times of a microbatch's forward, input gradient
    and weight gradient on a rank, and of a transfer, in one unit; empty: they are estimated."""
    memory: float | None = None
    """The memory cap of a rank, in activations of one microbatch on all of its stages; None: as published."""
    transfer: FloatFormat | None = None
    """The dtype in which activations and their gradients are sent between stages; None: their own."""
    per_microbatch: bool = False
    """Whether the loss is the mean of losses that are computed per microbatch."""
    barriers: int = 1
    """Barriers of all ranks between a microbatch's forward and backward, with a sharded vocabulary: 1 or 2."""
    places: Places = field(default=Places(), compare=False, repr=False)
    """Source spans of the statement, its axis, and the patterns of `split`."""
    spans: Mapping[str, Span] = field(default_factory=dict, compare=False, repr=False, hash=False)
    """Source spans of the items, by keyword."""

    def __post_init__(self) -> None:
        for item in ("microbatches", "chunks"):
            number = getattr(self, item)
            if number is not None and not 1 <= number <= MAX_COUNT:
                raise self._refused(item, f"{number} {item}", f"1 to {MAX_COUNT}")
        if self.barriers not in (1, 2):
            raise self._refused("barriers", f"{self.barriers} barriers", "1 or 2")
        if not _WORD.fullmatch(self.schedule):
            raise self._refused("schedule", f'a schedule named "{shortened(self.schedule)}"', "a word")
        if self.times and not _are_times(self.times):
            times = ", ".join(f"{time:g}" for time in self.times)
            raise self._refused(
                "times", f'the times "{times}"', "f,b,w or f,b,w,c, each at least 0, such as: times 1, 1, 1, 0"
            )
        if self.memory is not None and not (isfinite(self.memory) and self.memory > 0):
            raise self._refused("memory", f"a memory of {self.memory:g}", "a number of activations above 0")
        if self.split and self.balance is not Balance.TIME:
            raise PlanError(
                PlanCode.BAD_PIPELINE,
                f'the pipeline has both "split" and "balance {self.balance}", which both decide where stages begin',
                span=self.span_of("balance"),
                notes=(("the other item is here", self.span_of("split")),),
                help="keep one of the two",
            )
        check_patterns(self.split, self.places)

    def _refused(self, item: str, problem: str, expected: str) -> PlanError:
        message = f"a pipeline cannot have {problem}"
        return PlanError(PlanCode.BAD_PIPELINE, message, span=self.span_of(item), expected=f"expected {expected}")

    @property
    def axes(self) -> tuple[str, ...]:
        """The pipeline axis, as other statements list theirs."""
        return (self.axis,)

    @property
    def span(self) -> Span | None:
        """The whole statement's place."""
        return self.places.statement

    def span_of(self, item: str) -> Span | None:
        """The place of an item, else of the statement."""
        return self.spans.get(item, self.span)

    def __str__(self) -> str:
        items = [f"schedule {self.schedule}"]
        if self.chunks is not None:
            items.append(f"chunks {self.chunks}")
        items.append(f"microbatches {self.microbatches}")
        if self.balance is not Balance.TIME:
            items.append(f"balance {self.balance}")
        if self.split:
            items.append("split " + ", ".join(f'"{pattern}"' for pattern in self.split))
        if self.times:
            items.append("times " + ", ".join(map(_number_text, self.times)))
        if self.memory is not None:
            items.append(f"memory {_number_text(self.memory)}")
        if self.transfer is not None:
            items.append(f"transfer {self.transfer}")
        if self.barriers != 1:
            items.append(f"barriers {self.barriers}")
        if self.per_microbatch:
            items.append("per microbatch")
        return f"pipeline over {self.axis} {{ {'  '.join(items)} }}"


def _are_times(times: tuple[float, ...]) -> bool:
    return len(times) in (3, 4) and all(isfinite(time) and time >= 0 for time in times) and sum(times[:3]) > 0


def _number_text(number: float) -> str:
    return str(int(number)) if number == int(number) and abs(number) < MAX_COUNT else repr(float(number))


def read_pipeline(tree: Tree[Token], source: Source) -> Pipeline:
    """The value of a `pipeline` statement; raises PlanError for items and values that do not exist (E0124)."""
    keyword, axis, end = tokens(tree, "PIPELINE", "AXIS", "RBRACE")
    fields: dict[str, object] = {}
    spans: dict[str, Span] = {}
    patterns: tuple[Span, ...] = ()
    clauses = tree.find_data("clause")
    for name, _item, values, span in read_items(
        clauses, PlanCode.BAD_PIPELINE, "a pipeline has", tuple(_READERS), source
    ):
        spans[name] = span
        fields[_FIELDS.get(name, name)] = _READERS[name](_Item(name, tuple(values), source))
        if name == "split":
            patterns = tuple(source.span_of(value) for value in values)
    places = Places(source.span_of(keyword, end), axes=(source.span_of(axis),), patterns=patterns)
    if "microbatches" not in spans:
        raise PlanError(
            PlanCode.BAD_PIPELINE,
            "the pipeline has no number of microbatches",
            span=places.statement,
            expected="expected microbatches and a number",
            help="add, for example: microbatches 8",
        )
    return Pipeline(str(axis), places=places, spans=spans, **fields)  # type: ignore[arg-type]  # `_READERS` makes their types


@dataclass(frozen=True)
class _Item:
    """An item with the tokens of its values."""

    name: str
    values: tuple[Token, ...]
    source: Source

    def refused(self, value: Token, expected: Sequence[str]) -> PlanError:
        """The error for a value that the item cannot have."""
        return _refused(f'"{self.name}" cannot be {_quoted(value)}', value, expected, self.source)

    def word(self, *known: str) -> str:
        """The only value: one of the known words, or any word if none are given."""
        value = self._only("a name" if not known else listed(known))
        if value.type == "PATTERN" or (known and value not in known):
            raise self.refused(value, known or ("the name of a schedule, without quotes",))
        return str(value)

    def integer(self) -> int:
        value = self._only("a number")
        if not re.fullmatch(r"-?[0-9]+", value):
            raise self.refused(value, ("a whole number",))
        return read_number(value)

    def number(self, value: Token | None = None) -> float:
        value = self._only("a number") if value is None else value
        if not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", value):
            raise self.refused(value, ("a number",))
        return float(value)

    def numbers(self) -> tuple[float, ...]:
        return tuple(self.number(value) for value in self.values)

    def patterns(self) -> tuple[str, ...]:
        for value in self.values:
            if value.type != "PATTERN":
                raise self.refused(value, ("a pattern in quotes",))
        return tuple(str(value[1:-1]) for value in self.values)

    def _only(self, expected: str) -> Token:
        if len(self.values) > 1:
            raise self.refused(self.values[1], (f"{expected} alone",))
        return self.values[0]


_FIELDS = {"per": "per_microbatch"}
"""Fields whose name is not that of their item."""

_READERS: dict[str, Callable[[_Item], object]] = {
    "schedule": _Item.word,
    "chunks": _Item.integer,
    "microbatches": _Item.integer,
    "balance": lambda item: Balance(item.word(*Balance)),
    "split": _Item.patterns,
    "times": _Item.numbers,
    "memory": _Item.number,
    "transfer": lambda item: FloatFormat(item.word(*FloatFormat)),
    "barriers": _Item.integer,
    "per": lambda item: item.word("microbatch") == "microbatch",
}
"""By item, the function that reads its value."""

ITEMS = tuple(_READERS)


def _quoted(value: Token) -> str:
    return shortened(value) if value.type == "PATTERN" else f'"{shortened(value)}"'
