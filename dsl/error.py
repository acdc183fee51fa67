"""Errors of plans and written schedules: in the text itself, or against the model or the number of processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType

from lark import Token, Tree

from ..diagnostics import Span, StrettoError
from . import globs
from .source import Places, Source
from .spelling import did_you_mean, listed, shortened


class PlanCode(StrEnum):
    """The error codes of plans; `docs/errors.md` has a line for each."""

    SYNTAX = "E0101"
    STRAY_CHARACTER = "E0102"
    UNTERMINATED = "E0103"
    UNKNOWN_STATEMENT = "E0104"
    UNKNOWN_SUBJECT = "E0105"
    UNKNOWN_ROLE = "E0106"
    UNKNOWN_AXIS = "E0107"
    BAD_MESH = "E0108"
    DUPLICATE_AXIS = "E0109"
    DUPLICATE_MESH = "E0110"
    NO_MESH = "E0111"
    AXIS_USED_TWICE = "E0112"
    BAD_PATTERN = "E0113"
    NO_MATCH = "E0114"
    DIM_OUT_OF_RANGE = "E0115"
    UNSUITED_ROLE = "E0116"
    ALIASES_DISAGREE = "E0117"
    NOT_FOUND = "E0118"
    NOT_TEXT = "E0119"
    WORLD_SIZE = "E0120"
    BAD_PRECISION = "E0121"
    DUPLICATE_PRECISION = "E0122"
    PARAMETER_PRECISION = "E0123"
    BAD_PIPELINE = "E0124"
    DUPLICATE_PIPELINE = "E0125"
    PIPELINE_AXIS = "E0126"
    DUPLICATE_SCHEDULE = "E0127"
    BAD_ZERO = "E0128"
    BAD_ATTENTION = "E0129"


class WrittenCode(StrEnum):
    """The error codes of written schedules."""

    UNKNOWN_NAME = "E0130"
    DIVISION = "E0131"
    NAME_TWICE = "E0132"
    NEGATIVE_COUNT = "E0133"
    NO_SUCH_CHUNK = "E0134"


class MemoryCode(StrEnum):
    """The error codes of statements about memory; `docs/errors.md` has a line for each."""

    BAD_RECOMPUTE = "E0135"
    DOES_NOT_FIT = "E0136"
    BAD_SPLIT = "E0137"
    NO_CHUNKS = "E0138"
    NO_NANOBATCHES = "E0139"


class RoutingCode(StrEnum):
    """The error codes of statements about experts; `docs/errors.md` has a line for each."""

    BAD_EXPERTS = "E0140"


class OverlapCode(StrEnum):
    """The error codes of the statement about overlap; `docs/errors.md` has a line for each."""

    BAD_OVERLAP = "E0142"
    DOES_NOT_FIT = "E0143"


Code = PlanCode | MemoryCode | RoutingCode | OverlapCode


class PlanError(StrettoError):
    """A mistake in a plan or a written schedule; `code` is one of `PlanCode` and the enums below it."""


def item_set_twice(code: Code, statement: str, item: str, span: Span, first: Span) -> PlanError:
    """The error for an item in braces that a statement, such as "the pipeline", sets again."""
    return PlanError(
        code, f'{statement} sets "{item}" twice', span=span, notes=(("first set here", first),), help="keep one of them"
    )


def read_items(
    clauses: Iterable[Tree[Token]],
    code: Code,
    statement: str,
    known: Sequence[str],
    source: Source,
    later: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[tuple[str, Token, list[Token], Span]]:
    """The items in a statement's braces: name, its token, the tokens of its values, and the span of all.

    Raises PlanError for one that is not `known`, that comes `later` (which says what there is instead), or that is set
    twice. `statement` is the subject of the messages: "zero has", "experts have".
    """
    spans: dict[str, Span] = {}
    subject = statement.rpartition(" ")[0]
    for clause in clauses:
        item, *values = clause.scan_values(lambda leaf: isinstance(leaf, Token))
        name = str(item)
        if name in later:
            message = f'{subject} cannot set "{name}" yet'
            raise PlanError(code, message, span=source.span_of(item), help=later[name])
        if name not in known:
            raise unexpected_word(code, f'{statement} no item "{shortened(item)}"', item, known, source)
        if name in spans:
            raise item_set_twice(code, subject, name, source.span_of(item), spans[name])
        spans[name] = source.span_of(item, values[-1])
        yield name, item, values, spans[name]


def unexpected_word(code: Code, message: str, word: Token, expected: Sequence[str], source: Source) -> PlanError:
    """The error for a word in place of one of those `expected`, with the nearest of them."""
    return PlanError(
        code,
        message,
        span=source.span_of(word),
        expected=f"expected {listed(expected)}",
        help=did_you_mean(word, expected),
    )


def check_axes_differ(axes: Sequence[str], places: Places) -> None:
    """Raise PlanError E0112 for an axis that a statement names twice."""
    for index, axis in enumerate(axes):
        if axis in axes[:index]:
            message = f'the axis "{axis}" is used twice on one tensor'
            raise PlanError(PlanCode.AXIS_USED_TWICE, message, span=places.axis(index), help=f'name "{axis}" once')


def check_patterns(patterns: Sequence[str], places: Places) -> None:
    """Raise PlanError E0113 for a pattern that cannot be read."""
    for index, pattern in enumerate(patterns):
        if flaw := globs.flaw(pattern):
            message = f'the pattern "{shortened(pattern)}" cannot be read: {flaw}'
            raise PlanError(PlanCode.BAD_PATTERN, message, span=places.pattern(index))
