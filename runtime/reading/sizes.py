"""Expressions of named sizes, such as "(batch + 1) // 2 * 16" and "seq <= 64": a small grammar, parsed without `eval`.

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
_MAX_LENGTH = 400
"""Characters of one expression; compiled programs stay far below."""
_MAX_DEPTH = 40
"""Nesting of parentheses and minus signs; bounds the parser's recursion."""
_SUMS = {"+": operator.add, "-": operator.sub}
_PRODUCTS = {"*": operator.mul, "//": operator.floordiv, "%": operator.mod}
_COMPARISONS = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip

Sizes = Mapping[str, int]
"""The extent that each named size has."""


class BadExpression(ValueError):
    """A text that is not an expression of sizes, or an expression without a value; the message says why."""


@dataclass(frozen=True)
class Expression:
    """A parsed expression."""

    text: str
    evaluate: Callable[[Sizes], int | bool]
    """Its value. Raises BadExpression for a division by zero."""
    names: frozenset[str]


def value_of(text: str, sizes: Sizes) -> int:
    """The value of an expression. Raises BadExpression.

    >>> value_of("(batch + 1) // 2 * 16", {"batch": 5})
    48
    """
    expression = parse(text)
    _refuse_unknown_names(expression, sizes)
    return int(expression.evaluate(sizes))


def holds(text: str, sizes: Sizes) -> bool:
    """Whether a condition is true. Raises BadExpression.

    >>> holds("batch % 2 == 0", {"batch": 5})
    False
    """
    expression = parse(text, condition=True)
    _refuse_unknown_names(expression, sizes)
    return bool(expression.evaluate(sizes))


@lru_cache(maxsize=65536)
def parse(text: str, *, condition: bool = False) -> Expression:
    """Parse an expression or a condition. Raises BadExpression."""
    if len(text) > _MAX_LENGTH:
        raise BadExpression(f"'{text[:40]}...' is longer than {_MAX_LENGTH} characters")
    parser = _Parser(text)
    evaluate = parser.condition() if condition else parser.sum()
    parser.end()
    return Expression(text, evaluate, frozenset(parser.names))


def _refuse_unknown_names(expression: Expression, sizes: Sizes) -> None:
    missing = sorted(expression.names - sizes.keys())
    if missing:
        raise BadExpression(f"'{expression.text}' uses '{missing[0]}', which is not a size of the program")


class _Parser:
    """A recursive-descent parser of one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: set[str] = set()
        self._tokens = _tokens(text)
        self._position = 0
        self._depth = 0

    def condition(self) -> Callable[[Sizes], bool]:
        """Two sums and a comparison."""
        left = self.sum()
        compare = _COMPARISONS.get(self._next())
        if compare is None:
            raise BadExpression(f"'{self.text}' is not a condition: it has no comparison such as '=='")
        right = self.sum()
        return lambda sizes: compare(left(sizes), right(sizes))

    def sum(self) -> Callable[[Sizes], int]:
        """Products joined by + and -."""
        return self._joined(self._product, _SUMS)

    def end(self) -> None:
        """Raise BadExpression where tokens are left."""
        if self._position < len(self._tokens):
            raise BadExpression(f"'{self.text}' has an unexpected '{self._tokens[self._position]}'")

    def _product(self) -> Callable[[Sizes], int]:
        return self._joined(self._factor, _PRODUCTS)

    def _factor(self) -> Callable[[Sizes], int]:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise BadExpression(f"'{self.text[:40]}...' is nested more than {_MAX_DEPTH} deep")
        factor = self._single(self._next())
        self._depth -= 1
        return factor

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
                raise BadExpression(f"'{self.text}' misses a ')'")
            return inner
        if not token.isidentifier():
            raise BadExpression(f"'{self.text}': expected a number, a name or '(', found '{token}'")
        self.names.add(token)
        return lambda sizes: sizes[token]

    def _joined(
        self, part: Callable[[], Callable[[Sizes], int]], signs: Mapping[str, Callable[[int, int], int]]
    ) -> Callable[[Sizes], int]:
        left = part()
        while self._position < len(self._tokens) and self._tokens[self._position] in signs:
            left = _binary(self.text, signs[self._next()], left, part())
        return left

    def _next(self) -> str:
        if self._position == len(self._tokens):
            raise BadExpression(f"'{self.text}' ends too early")
        self._position += 1
        return self._tokens[self._position - 1]


def _binary(
    text: str, join: Callable[[int, int], int], left: Callable[[Sizes], int], right: Callable[[Sizes], int]
) -> Callable[[Sizes], int]:
    def joined(sizes: Sizes) -> int:
        try:
            return join(left(sizes), right(sizes))
        except ZeroDivisionError:
            raise BadExpression(f"'{text}' divides by zero") from None

    return joined


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            raise BadExpression(f"'{text}' has an unexpected character at position {position + 1}")
        tokens.append(match[0].strip())
        position = match.end()
    return tokens
