"""Syntax errors of written schedules."""

from __future__ import annotations

from collections.abc import Collection

from lark import Token

from .error import PlanCode, PlanError
from .source import Source
from .spelling import did_you_mean, listed, shortened

KEYWORDS = {
    "SCHEDULE": "schedule", "STAGES": "stages", "MICROBATCHES": "microbatches", "CHUNKS": "chunks",
    "PLACEMENT": "placement", "STAGE": "stage", "WARMUP": "warmup", "STEADY": "steady", "DRAIN": "drain",
    "MIN": "min", "MAX": "max",
}  # fmt: skip
"""The keywords by terminal."""

WORDS: dict[str, str] = {
    **{terminal: f'"{word}"' for terminal, word in KEYWORDS.items()},
    "SHAPE": '"loop" or "v"', "KIND": "a task (F, B, W or BW)", "NAME": "a name", "NUMBER": "a number",
    "LPAR": '"("', "RPAR": '")"', "LBRACE": '"{"', "RBRACE": '"}"', "LSQB": '"["', "RSQB": '"]"', "COMMA": '","',
    "PLUS": '"+"', "MINUS": '"-"', "TIMES": '"*"', "OVER": '"/"', "MODULO": '"%"', "$END": "the end",
}  # fmt: skip
"""What messages call each terminal."""

_OPERATORS = {"PLUS", "MINUS", "TIMES", "OVER", "MODULO"}
_OPERANDS = {"NAME", "NUMBER", "MIN", "MAX", "LPAR", "MINUS"}


def unexpected_token(token: Token, expected: Collection[str], source: Source) -> PlanError:
    """The error for a token in place of one of the terminals `expected`."""
    if token.type == "$END":
        line = max((number for number, text in enumerate(source.lines, 1) if text.strip()), default=1)
        span = source.span(line, len(source.lines[line - 1].rstrip()) + 1, 1)
        return PlanError(PlanCode.SYNTAX, "the schedule ends too early", span=span, expected=_expected(expected))
    words = [KEYWORDS[name] for name in expected if name in KEYWORDS]
    message = f'unexpected "{shortened(token)}"'
    help = did_you_mean(token, sorted(words))
    return PlanError(PlanCode.SYNTAX, message, span=source.span_of(token), expected=_expected(expected), help=help)


def unexpected_character(line: int, column: int, source: Source) -> PlanError:
    """The error for a character that begins no token."""
    char = source.lines[line - 1][column - 1]
    shown = f'"{char}"' if char.isprintable() else f"U+{ord(char):04X}"
    message = f"the character {shown} has no meaning here"
    return PlanError(PlanCode.STRAY_CHARACTER, message, span=source.span(line, column, 1))


def _expected(terminals: Collection[str]) -> str:
    """The terminals in words; all operators are "an operator", all beginnings of expressions "an expression"."""
    remaining = set(terminals)
    words = []
    if remaining >= _OPERANDS:
        words.append("an expression")
        remaining -= _OPERANDS
    if remaining >= _OPERATORS:
        words.append("an operator")
        remaining -= _OPERATORS
    words.extend(word for terminal, word in WORDS.items() if terminal in remaining)
    return f"expected {listed(words)}"
