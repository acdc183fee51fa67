"""`pipeline over pp { schedule zb-v  microbatches 8 }`: the model in stages, the batch in microbatches, in an order.

The stages lie on an axis of the mesh. Which schedules have a name is not known here: `schedule` names one of them, or
one that is written in the same plan.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite

from lark import Token, Tree

from ..diagnostics import Span
from . import globs
from .error import PlanCode, PlanError
from .mesh import read_number
from .precision import FloatFormat
from .source import Places, Source, tokens
from .spelling import did_you_mean, listed, shortened

MOST = 1_000_000
"""The largest number of microbatches, and of chunks."""
TIME = "microbatch"
"""What no axis of the mesh may be called beside a pipeline: compilers call the axis of time so."""
DEFAULT_SCHEDULE = "1f1b"

_WORD = re.compile(r"-?[A-Za-z0-9_][A-Za-z0-9_.+-]*")


class Balance(StrEnum):
    """What stages have equally much of, where the plan does not say where they begin."""

    TIME = "time"
    """Of estimated time."""
    MEMORY = "memory"
    """Of parameters and activations, in bytes."""
    LAYERS = "layers"
    """Of repeated layers."""


@dataclass(frozen=True)
class Pipeline:
    """What a plan says of its pipeline.

    Raises PlanError for numbers out of range and for items that exclude each other (E0124), and for a bad pattern
    (E0113).

    >>> print(Pipeline("pp", 8, "zb-v"))
    pipeline over pp { schedule zb-v  microbatches 8 }
    """

    axis: str
    """The axis of the mesh that the stages lie on."""
    microbatches: int
    schedule: str = DEFAULT_SCHEDULE
    """The name of a schedule: of the plan's own, or of one that has a name everywhere."""
    chunks: int | None = None
    """Virtual stages of a rank; None: as many as the schedule is usually given."""
    balance: Balance = Balance.TIME
    split: tuple[str, ...] = ()
    """Globs of modules at whose first operation a stage begins; empty: the stages are balanced."""
    times: tuple[float, ...] = ()
    """f, b, w and perhaps c, for schedules that search: a microbatch's forward, input gradient and weight gradient on
    a rank, and the time to send, in one unit; empty: they are estimated."""
    memory: float | None = None
    """The most activations of a rank, in those of one microbatch on all that it holds; None: as published."""
    transfer: FloatFormat | None = None
    """What activations and their gradients are cast to where they cross from stage to stage; None: nothing is."""
    per_microbatch: bool = False
    """Whether the loss is the mean of the losses of the microbatches, each computed alone."""
    barriers: int = 1
    """How often ranks meet between a microbatch's forward and backward, where they share the vocabulary: 1 or 2."""
    places: Places = field(default=Places(), compare=False, repr=False)
    """Where the statement stands, its axis, and the patterns of `split`."""
    spans: Mapping[str, Span] = field(default_factory=dict, compare=False, repr=False, hash=False)
    """Where each item that is written stands, by its word."""

    def __post_init__(self) -> None:
        for item in ("microbatches", "chunks"):
            number = getattr(self, item)
            if number is not None and not 1 <= number <= MOST:
                raise self._refused(item, f"{number} {item}", f"1 to {MOST}")
        if self.barriers not in (1, 2):
            raise self._refused("barriers", f"{self.barriers} barriers", "1 or 2")
        if not _WORD.fullmatch(self.schedule):
            raise self._refused("schedule", f'a schedule of the name "{shortened(self.schedule)}"', "a word")
        if self.times and not _are_times(self.times):
            raise self._refused(
                "times", "such times", "f,b,w or f,b,w,c, from 0 and not all 0, as in: times 1, 1, 1, 0"
            )
        if self.memory is not None and not (isfinite(self.memory) and self.memory > 0):
            raise self._refused("memory", f"a memory of {self.memory:g}", "a number of activations above 0")
        if self.split and self.balance is not Balance.TIME:
            raise PlanError(
                PlanCode.BAD_PIPELINE,
                f'the pipeline says both where stages begin and how to balance them: "split" and "{self.balance}"',
                span=self.span_of("balance"),
                notes=(("they begin at the modules that are named here", self.span_of("split")),),
                help="keep one of the two",
            )
        for index, pattern in enumerate(self.split):
            if flaw := globs.flaw(pattern):
                message = f'the pattern "{shortened(pattern)}" cannot be read: {flaw}'
                raise PlanError(PlanCode.BAD_PATTERN, message, span=self.places.pattern(index))

    def _refused(self, item: str, what: str, expected: str) -> PlanError:
        message = f"a pipeline cannot have {what}"
        return PlanError(PlanCode.BAD_PIPELINE, message, span=self.span_of(item), expected=f"expected {expected}")

    @property
    def axes(self) -> tuple[str, ...]:
        """The axis, as statements about several have it."""
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
    return str(int(number)) if number == int(number) and abs(number) < MOST else repr(float(number))


def read_pipeline(tree: Tree[Token], source: Source) -> Pipeline:
    """The value of a `pipeline` statement; raises PlanError for items and values that do not exist (E0124)."""
    keyword, axis, end = tokens(tree, "PIPELINE", "AXIS", "RBRACE")
    said: dict[str, object] = {}
    spans: dict[str, Span] = {}
    patterns: tuple[Span, ...] = ()
    for clause in (child for child in tree.children if isinstance(child, Tree)):
        item, *values = tokens(clause, "CLAUSE", "WORD", "PATTERN")
        name = str(item)
        if name not in _READERS:
            raise _refused(f'a pipeline has no item "{shortened(item)}"', item, tuple(_READERS), source)
        if name in spans:
            raise PlanError(
                PlanCode.BAD_PIPELINE,
                f'the pipeline says "{name}" twice',
                span=source.of(item),
                notes=(("first said here", spans[name]),),
                help="keep one of them",
            )
        spans[name] = source.of(item, values[-1])
        said[_FIELDS.get(name, name)] = _READERS[name](_Item(name, tuple(values), source))
        if name == "split":
            patterns = tuple(source.of(value) for value in values)
    places = Places(source.of(keyword, end), axes=(source.of(axis),), patterns=patterns)
    if "microbatches" not in spans:
        raise PlanError(
            PlanCode.BAD_PIPELINE,
            "the pipeline does not say how many microbatches the batch is cut into",
            span=places.statement,
            expected="expected microbatches and a number",
            help="add, for example: microbatches 8",
        )
    return Pipeline(str(axis), places=places, spans=spans, **said)  # type: ignore[arg-type]  # as `_READERS` gives them


@dataclass(frozen=True)
class _Item:
    """An item and its values, as they are written."""

    name: str
    values: tuple[Token, ...]
    source: Source

    def refused(self, value: Token, expected: Sequence[str]) -> PlanError:
        """The error for a value that the item cannot have."""
        return _refused(f'"{self.name}" cannot be {_quoted(value)}', value, expected, self.source)

    def word(self, *known: str) -> str:
        """The one word of the item: one of those known, any where none is given."""
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
"""The field of an item that has another name."""

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
"""What makes the value of each item."""

ITEMS = tuple(_READERS)


def _quoted(value: Token) -> str:
    return shortened(value) if value.type == "PATTERN" else f'"{shortened(value)}"'


def _refused(message: str, word: Token, expected: Sequence[str], source: Source) -> PlanError:
    return PlanError(
        PlanCode.BAD_PIPELINE,
        message,
        span=source.of(word),
        expected=f"expected {listed(expected)}",
        help=did_you_mean(word, expected),
    )
