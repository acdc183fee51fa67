"""Expressions of sizes, such as "(batch + 1) // 2 * 16" and "seq <= 64": a small grammar, read here and never by eval.

    condition:  sum, then one of == != < <= > >= and another sum
    sum:        products joined by + and -
    product:    factors joined by * // %
    factor:     a whole number, a name, -factor, or (sum)

Division rounds down and a remainder has the sign of its divisor, as in Python.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

_TOKEN = re.compile(r"\s*(?:(?P<number>[0-9]{1,18})|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign>//|[<>=!]=|[-+*%<>()]))")
_LONGEST = 400
"""Characters of one expression; nothing that is compiled comes near."""
_DEEPEST = 40
"""Parentheses and minus signs inside each other: so a reader's stack stays small."""
_SUMS = {"+": operator.add, "-": operator.sub}
_PRODUCTS = {"*": operator.mul, "//": operator.floordiv, "%": operator.mod}
_COMPARISONS = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip

Sizes = Mapping[str, int]
"""The extent that each named size has."""


class BadExpression(ValueError):
    """A text that is no expression of sizes, or one that has no value; the message says why."""


@dataclass(frozen=True)
class Expression:
    """An expression that was read."""

    text: str
    evaluate: Callable[[Sizes], int | bool]
    """Its value; raises BadExpression for a division by zero."""
    names: frozenset[str]


def value_of(text: str, sizes: Sizes) -> int:
    """The number that an expression stands for.

    >>> value_of("(batch + 1) // 2 * 16", {"batch": 5})
    48
    """
    expression = read(text)
    _known(expression, sizes)
    return int(expression.evaluate(sizes))


def holds(text: str, sizes: Sizes) -> bool:
    """Whether a condition is true.

    >>> holds("batch % 2 == 0", {"batch": 5})
    False
    """
    expression = read(text, condition=True)
    _known(expression, sizes)
    return bool(expression.evaluate(sizes))


@lru_cache(maxsize=65536)
def read(text: str, *, condition: bool = False) -> Expression:
    """The expression or condition that a text says; raises BadExpression."""
    if len(text) > _LONGEST:
        raise BadExpression(f"'{text[:40]}...' is longer than {_LONGEST} characters")
    reader = _Reader(text)
    evaluate = reader.condition() if condition else reader.sum()
    reader.end()
    return Expression(text, evaluate, frozenset(reader.names))


def _known(expression: Expression, sizes: Sizes) -> None:
    missing = sorted(expression.names - sizes.keys())
    if missing:
        raise BadExpression(f"'{expression.text}' speaks of '{missing[0]}', which is no size of the program")


class _Reader:
    """One text, read from left to right."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: set[str] = set()
        self._tokens = _tokens(text)
        self._at = 0
        self._depth = 0

    def condition(self) -> Callable[[Sizes], bool]:
        """Two sums and how they compare."""
        left = self.sum()
        compare = _COMPARISONS.get(self._next())
        if compare is None:
            raise BadExpression(f"'{self.text}' compares nothing")
        right = self.sum()
        return lambda sizes: compare(left(sizes), right(sizes))

    def sum(self) -> Callable[[Sizes], int]:
        """Products, added and subtracted."""
        return self._joined(self._product, _SUMS)

    def end(self) -> None:
        """Nothing may be left."""
        if self._at < len(self._tokens):
            raise BadExpression(f"'{self.text}' has '{self._tokens[self._at]}' behind its end")

    def _product(self) -> Callable[[Sizes], int]:
        return self._joined(self._factor, _PRODUCTS)

    def _factor(self) -> Callable[[Sizes], int]:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise BadExpression(f"'{self.text[:40]}...' is nested more than {_DEEPEST} deep")
        found = self._single(self._next())
        self._depth -= 1
        return found

    def _single(self, token: str) -> Callable[[Sizes], int]:
        if token.isdigit():
            number = int(token)
            return lambda sizes: number
        if token == "-":
            negated = self._factor()
            return lambda sizes: -negated(sizes)
        if token == "(":
            inner = self.sum()
            if self._next() != ")":
                raise BadExpression(f"'{self.text}' lacks a ')'")
            return inner
        if not token.isidentifier():
            raise BadExpression(f"'{self.text}': a number, a name or '(' was expected, not '{token}'")
        self.names.add(token)
        return lambda sizes: sizes[token]

    def _joined(
        self, part: Callable[[], Callable[[Sizes], int]], signs: Mapping[str, Callable[[int, int], int]]
    ) -> Callable[[Sizes], int]:
        left = part()
        while self._at < len(self._tokens) and self._tokens[self._at] in signs:
            left = _both(self.text, signs[self._next()], left, part())
        return left

    def _next(self) -> str:
        if self._at == len(self._tokens):
            raise BadExpression(f"'{self.text}' ends too early")
        self._at += 1
        return self._tokens[self._at - 1]


def _both(
    text: str, join: Callable[[int, int], int], left: Callable[[Sizes], int], right: Callable[[Sizes], int]
) -> Callable[[Sizes], int]:
    def joined(sizes: Sizes) -> int:
        try:
            return join(left(sizes), right(sizes))
        except ZeroDivisionError:
            raise BadExpression(f"'{text}' divides by zero") from None

    return joined


def _tokens(text: str) -> list[str]:
    found: list[str] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            raise BadExpression(f"'{text}' has a character at {at + 1} that no size is written with")
        found.append(match[0].strip())
        at = match.end()
    return found
