"""Syntax errors of plans, in words rather than in names of grammar terminals."""

from __future__ import annotations

import re
from collections.abc import Collection

from lark import Token

from ..diagnostics import Span
from .error import PlanCode, PlanError
from .source import Source
from .spelling import did_you_mean, listed, shortened

STATEMENTS = {
    "MESH": "mesh", "AXES": "axes", "SHARD": "shard", "STORE": "store", "ZERO": "zero", "ATTENTION": "attention",
    "RECOMPUTE": "recompute", "SPLIT": "split", "EXPERTS": "experts", "OVERLAP": "overlap", "PRECISION": "precision",
    "PIPELINE": "pipeline", "SCHEDULE": "schedule",
}  # fmt: skip
"""The first keyword of each kind of statement, by terminal."""

WORDS: dict[str, tuple[str, ...]] = {
    "LPAR": ('"("',),
    "RPAR": ('")"',),
    "LBRACE": ('"{"',),
    "RBRACE": ('"}"',),
    "EQUAL": ('"="',),
    "COMMA": ('","',),
    "OVER": ('"over"',),
    "SUBJECT": ("activations", "inputs", "buffers"),
    "PATTERN": ("a pattern in quotes",),
    "AXIS": ("a mesh axis",),
    "NUMBER": ("a number",),
    "ITEM": ("params", "compute", "reduce"),
    "FORMAT": ("a format such as bf16",),
    "ATTENTION_ITEM": ("method", "layout"),
    "ZERO_CLAUSE": ("prefetch", "bucket", "keep", "within", "reduce", "only", "from"),
    "SPLIT_SUBJECT": ("loss", "tokens", "batch"),
    "SPLIT_CLAUSE": ("order", "sizes", "from", "in"),
    "INTO": ('"into"',),
    "KIND": ("a kind of operation such as attention",),
    "RECOMPUTE_CLAUSE": ("memory", "except", "collectives"),
    "EXPERTS_CLAUSE": ("capacity", "bound", "move"),
    "OVERLAP_CLAUSE": ("level", "hide", "fuse", "lanes", "memory"),
    "OVERLAP_WORD": ("a word", "a number"),
    "CLAUSE": (
        "schedule",
        "chunks",
        "microbatches",
        "balance",
        "split",
        "times",
        "memory",
        "transfer",
        "barriers",
        "per",
    ),
    "WORD": ("a word", "a number"),
    "ROLE": ("a role such as columns",),
    "DIM": ("dim N",),
    "_NL": ("the end of the line",),
}
"""What messages call each terminal, in the order in which they list them."""

KEYWORDS = {"OVER": "over", "DIM": "dim", "INTO": "into"}
"""Keywords inside statements, for spelling hints."""

_CODE = re.compile(r'(?:"[^"]*"|[^"#])*')
_NAME = re.compile(r"[^\W\d]\w*")
_QUOTES = "'`*.?[]{}\u2018\u2019\u201c\u201d"


def unexpected_token(token: Token, expected: Collection[str], source: Source) -> PlanError:
    """The error for a token in place of one of the terminals `expected`."""
    if token.type == "$END":
        span = _end_of_code(source, len(source.lines))
        return PlanError(PlanCode.SYNTAX, "the plan ends too early", span=span, expected=_expected(expected))
    if token.startswith("\n"):
        span = _end_of_code(source, token.line or 1)
        return PlanError(PlanCode.SYNTAX, "the line ends too early", span=span, expected=_expected(expected))
    if token.type == "SCHEDULE":  # the token is the whole statement
        token = Token.new_borrow_pos("MESH", STATEMENTS["SCHEDULE"], token)
        span = source.span(token.line or 1, token.column or 1, len(token))
    else:
        span = source.span_of(token)
    if STATEMENTS.keys() <= set(expected) and _NAME.fullmatch(token):
        return _unknown_statement(token, span)
    help = did_you_mean(token, [word for name, word in KEYWORDS.items() if name in expected])
    word = shortened(token)
    message = f"unexpected pattern {word}" if token.type == "PATTERN" else f'unexpected "{word}"'
    return PlanError(PlanCode.SYNTAX, message, span=span, expected=_expected(expected), help=help)


def _unknown_statement(word: str, span: Span) -> PlanError:
    return PlanError(
        PlanCode.UNKNOWN_STATEMENT,
        f'unknown statement "{shortened(word)}"',
        span=span,
        expected=f"expected {listed([*STATEMENTS.values()])}",
        help=did_you_mean(word, STATEMENTS.values()),
    )


def _expected(terminals: Collection[str]) -> str:
    """The terminals in words; all that begin a statement are "a statement"."""
    words = [word for name, words in WORDS.items() if name in terminals for word in words]
    if STATEMENTS.keys() <= set(terminals):
        words = [f"a statement ({listed([*STATEMENTS.values()])})"]
    return f"expected {listed(words)}"


def _end_of_code(source: Source, line: int) -> Span:
    """The position just after the last token at or above `line`, comments left out."""
    while True:
        match = _CODE.match(source.lines[min(line, len(source.lines)) - 1])
        code = match[0].rstrip() if match else ""
        if code or line <= 1:
            return source.span(line, len(code) + 1, 1)
        line -= 1


def unexpected_character(line: int, column: int, expected: Collection[str], source: Source) -> PlanError:
    """The error for a character that begins no token: an unterminated string, or a stray character."""
    text = source.lines[line - 1]
    char = text[column - 1]
    if char == '"':
        span = source.span(line, column, len(text.rstrip()) - column + 1)
        return PlanError(PlanCode.UNTERMINATED, "the pattern has no closing quote", span=span, help='close it with "')
    shown = f'"{char}"' if char.isprintable() else f"U+{ord(char):04X}"
    return PlanError(
        PlanCode.STRAY_CHARACTER,
        f"the character {shown} has no meaning here",
        span=source.span(line, column, 1),
        expected=_expected(expected),
        help=f'write patterns in double quotes: "{_unquoted(text[column - 1 :])}"' if char in _QUOTES else "",
    )


def _unquoted(text: str) -> str:
    """The pattern at the beginning of a text, without quotes of other kinds.

    >>> _unquoted("'*.q_proj', 'x' columns")
    '*.q_proj'
    """
    return shortened(text.split(maxsplit=1)[0].strip(",'`\u2018\u2019\u201c\u201d\"") or "*.q_proj")
