"""Pass options as text: option names, and parsing, checking and printing of values by the field's type."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from ..dsl.plan import Plan

VALUE = re.compile(r'"(?P<quoted>[^"]*)"|(?P<bare>[^\s{}"]+)')
"""A value in a pipeline without braces: in double quotes, or without blanks and braces."""
_BRACES = re.compile(r'[{}]|"[^"]*"?')


def option_name(field_name: str) -> str:
    """The option name of a field: kebab-case."""
    return field_name.replace("_", "-")


def closing_brace(text: str, opened: int) -> int | None:
    """The index of the brace that closes the one at `opened`; braces in double quotes do not count.

    >>> closing_brace('{a={b="}"}}', 0), closing_brace("{{}", 0)
    (10, None)
    """
    depth = 0
    for match in _BRACES.finditer(text, opened):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return None


@dataclass(frozen=True)
class Range:
    """The range of a number, ends included, and its unit: `min_bytes: Annotated[int, Range(0, unit="bytes")] = 0`."""

    low: float | None = None
    high: float | None = None
    unit: str = ""

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        if self.high is None:
            return f"of at least {self.low}{unit}"
        return f"from {self.low} to {self.high}{unit}" if self.low is not None else f"of at most {self.high}{unit}"

    def holds(self, value: float) -> bool:
        """Whether a value is in the range; NaN never is."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high) and value == value


def parse_value(type_: Any, text: str) -> Any:
    """Parse a text as a value of a field's type (from `get_type_hints`, with extras).

    Raises ValueError with what was expected. For a type that may be None, the text "none" is None.
    """
    if get_origin(type_) is Annotated:
        base, *extras = get_args(type_)
        limits = [item for item in extras if isinstance(item, Range)]
        return _within(base, limits, text)
    if get_origin(type_) in (Union, UnionType):
        kinds = [item for item in get_args(type_) if item is not NoneType]
        if len(kinds) < len(get_args(type_)) and text == "none":
            return None
        return parse_value(kinds[0], text)
    if type_ is bool:
        if text not in ("true", "false"):
            raise ValueError("true or false")
        return text == "true"
    if type_ is int or type_ is float:
        try:
            return type_(text)
        except ValueError:
            raise ValueError(_kind(type_)) from None
    if type_ is Plan:
        return Plan.load(text)
    if isinstance(type_, type) and issubclass(type_, Enum):
        try:
            return type_(text)
        except ValueError:
            raise ValueError(" or ".join(str(member.value) for member in type_)) from None
    return text


def print_value(value: Any) -> str:
    """The text that `parse_value` reads as this value."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = value.file if isinstance(value, Plan) else str(value.value if isinstance(value, Enum) else value)
    match = VALUE.fullmatch(text)
    if match is not None and match["bare"] is not None:
        return text
    return f"{{{text}}}" if '"' in text else f'"{text}"'


def _within(base: Any, limits: list[Range], text: str) -> Any:
    expected = " ".join([_kind(base), *map(str, limits)])
    try:
        value = parse_value(base, text)
    except ValueError:
        raise ValueError(expected) from None
    if value is not None and not all(item.holds(value) for item in limits):
        raise ValueError(expected)
    return value


def _kind(type_: Any) -> str:
    return "an integer" if type_ is int or int in get_args(type_) else "a number"
