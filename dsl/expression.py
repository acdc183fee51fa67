"""Integer expressions of written schedules: names, + - * / %, min and max; `/` rounds down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lark import Token, Tree

from ..diagnostics import Span
from .error import PlanError, WrittenCode
from .source import Source
from .spelling import did_you_mean, listed

_STRENGTH = {"+": 1, "-": 1, "*": 2, "/": 2, "%": 2}
_DIGITS = 9


@dataclass(frozen=True)
class Number:
    """A literal."""

    value: int

    def __str__(self) -> str:
        return str(self.value)


@dataclass(frozen=True)
class Name:
    """A parameter of the schedule, or its stage variable."""

    name: str
    span: Span | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Binary:
    """A binary operation."""

    operator: str
    left: Expression
    right: Expression
    span: Span | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        strength = _STRENGTH[self.operator]
        left = _inside(self.left, strength)
        return f"{left} {self.operator} {_inside(self.right, strength + 1)}"


@dataclass(frozen=True)
class Call:
    """`min(...)` or `max(...)`."""

    function: str
    arguments: tuple[Expression, ...]

    def __str__(self) -> str:
        return f"{self.function}({', '.join(map(str, self.arguments))})"


@dataclass(frozen=True)
class Negative:
    """A negation."""

    operand: Expression

    def __str__(self) -> str:
        return f"-{_inside(self.operand, 3)}"


Expression = Number | Name | Binary | Call | Negative


def _inside(expression: Expression, strength: int) -> str:
    """The text of an operand, in parentheses if it binds less tightly than its operator."""
    if isinstance(expression, Binary) and _STRENGTH[expression.operator] < strength:
        return f"({expression})"
    return str(expression)


def evaluate(expression: Expression, values: Mapping[str, int]) -> int:
    """The value of an expression. Raises PlanError for an unknown name (E0130) and a division by zero (E0131).

    >>> evaluate(Binary("/", Name("p"), Number(2)), {"p": 5})
    2
    """
    match expression:
        case Number(value):
            return value
        case Name(name, span):
            if name not in values:
                raise PlanError(
                    WrittenCode.UNKNOWN_NAME, f'unknown name "{name}"', span=span,
                    expected=f"expected {listed([*values])}", help=did_you_mean(name, values),
                )  # fmt: skip
            return values[name]
        case Negative(operand):
            return -evaluate(operand, values)
        case Call(function, arguments):
            numbers = [evaluate(argument, values) for argument in arguments]
            return min(numbers) if function == "min" else max(numbers)
        case Binary(operator, left, right, span):
            return _compute(operator, evaluate(left, values), evaluate(right, values), span)


def _compute(operator: str, left: int, right: int, span: Span | None) -> int:
    if operator in "/%" and right == 0:
        raise PlanError(
            WrittenCode.DIVISION,
            f'division by zero in "{left} {operator} 0"',
            span=span,
            help="divide by a number other than 0",
        )
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            return left // right
        case _:
            return left % right


def read_expression(tree: Tree[Token], source: Source) -> Expression:
    """The expression that a parse tree spells."""
    children = tree.children
    first = children[0]
    match str(tree.data):
        case "number":
            assert isinstance(first, Token)
            return Number(int(first) if len(first) <= _DIGITS else 10**_DIGITS)
        case "name":
            assert isinstance(first, Token)
            return Name(str(first), source.span_of(first))
        case "negative":
            return Negative(_operand(children[1], source))
        case "call":
            return Call(str(first), tuple(_operand(child, source) for child in children[1:]))
        case _:
            operator = children[1]
            assert isinstance(operator, Token)
            left, right = _operand(first, source), _operand(children[2], source)
            return Binary(str(operator), left, right, source.span_of(operator))


def _operand(child: Token | Tree[Token], source: Source) -> Expression:
    assert isinstance(child, Tree)
    return read_expression(child, source)
