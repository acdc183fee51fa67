"""Pipelines as text, in MLIR's syntax: `fold-layers,propagate-placements,start-collectives{option=value other=value}`.

Options are the fields of a pass's dataclass, in kebab-case; values are parsed by the field's type: int, float, bool
(true, false), text, an enumeration's value, or a plan file's path (`option_values.py`). Text with blanks or braces
stands in double quotes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, get_type_hints

from ..diagnostics import Span, StrettoError
from .base import Pass
from .manager import Step
from .option_values import VALUE, parse_value, print_value
from .registry import UPSTREAM, pass_class, unknown_pass

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


def parse_pipeline(text: str, source: str = "-p") -> list[Step]:
    """The passes that a pipeline names. Errors E0410 to E0416 point at the place in the text; `source` names it."""
    return list(_Parser(text, source).steps())


def print_pipeline(steps: Sequence[Step]) -> str:
    """The text that `parse_pipeline` reads as these passes."""
    return ",".join(step if isinstance(step, str) else _print_pass(step) for step in steps)


def option_name(field_name: str) -> str:
    """The option that a field is: kebab-case."""
    return field_name.replace("_", "-")


@dataclass(frozen=True)
class _Given:
    """The text of an option's value, and where name and value stand."""

    text: str
    named: int
    valued: int


@dataclass
class _Parser:
    text: str
    source: str
    at: int = 0

    def steps(self) -> Iterator[Step]:
        """Every pass in order."""
        self._blanks()
        if self.at == len(self.text):
            raise self._error("E0412", "the pipeline is empty", "expected the name of a pass")
        while True:
            yield self._step()
            self._blanks()
            if self.at == len(self.text):
                return
            if self.text[self.at] != ",":
                raise self._error("E0412", f'unexpected "{self.text[self.at]}"', 'expected "," or the end')
            self.at += 1
            self._blanks()

    def _step(self) -> Step:
        start = self.at
        name = self._take(_NAME, "E0412", "the name of a pass")
        given = self._options()
        if name in UPSTREAM:
            if given:
                raise self._error("E0413", f'"{name}" takes no options here', at=next(iter(given.values())).named)
            return name
        try:
            cls = pass_class(name)
        except StrettoError as error:
            if error.code != "E0410":
                raise
            raise self._error(
                error.code, error.message, at=start, length=len(name), help=unknown_pass(name).help
            ) from None
        return self._build(cls, name, given, start)

    def _options(self) -> dict[str, _Given]:
        """The options in braces."""
        found: dict[str, _Given] = {}
        if self.at == len(self.text) or self.text[self.at] != "{":
            return found
        opened = self.at
        self.at += 1
        while True:
            self._blanks()
            if self.at == len(self.text):
                raise self._error("E0412", 'this "{" is never closed', 'expected "}" before the end', at=opened)
            if self.text[self.at] == "}":
                self.at += 1
                return found
            named = self.at
            name = self._take(_NAME, "E0412", "the name of an option")
            if self.at == len(self.text) or self.text[self.at] != "=":
                raise self._error("E0412", f'option "{name}" has no value', f'expected "=" after "{name}"')
            self.at += 1
            valued = self.at
            match = VALUE.match(self.text, self.at)
            if match is None:
                raise self._error("E0412", f'option "{name}" has no value', "expected a value")
            self.at = match.end()
            text = match["quoted"] if match["bare"] is None else match["bare"]
            found[name] = _Given(text, named, valued)

    def _build(self, cls: type[Pass], name: str, given: Mapping[str, _Given], start: int) -> Pass:
        known = {option_name(f.name): f for f in fields(cls)}
        types = get_type_hints(cls, include_extras=True)
        values: dict[str, Any] = {}
        for option, value in given.items():
            if option not in known:
                near = difflib.get_close_matches(option, known, 1)
                hint = f'did you mean "{near[0]}"?' if near else f"options: {', '.join(known) or 'none'}"
                raise self._error(
                    "E0414", f'pass "{name}" has no option "{option}"', at=value.named, length=len(option), help=hint
                )
            values[known[option].name] = self._value(types[known[option].name], option, value)
        missing = [option for option, f in known.items() if f.name not in values and _is_required(f)]
        if missing:
            raise self._error(
                "E0415", f'pass "{name}" needs the option "{missing[0]}"', at=start, length=len(name),
                help=f"write {name}{{{missing[0]}=...}}",
            )  # fmt: skip
        return cls(**values)

    def _value(self, type_: Any, option: str, value: _Given) -> Any:
        try:
            return parse_value(type_, value.text)
        except ValueError as error:
            raise self._error(
                "E0416",
                f'option "{option}" is "{value.text}"',
                f"expected {error}",
                at=value.valued,
                length=len(value.text),
            ) from None

    def _take(self, pattern: re.Pattern[str], code: str, what: str) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            found = f'"{self.text[self.at]}"' if self.at < len(self.text) else "end"
            raise self._error(code, f"unexpected {found}", f"expected {what}")
        self.at = match.end()
        return match.group()

    def _blanks(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def _error(
        self, code: str, message: str, expected: str = "", *, at: int | None = None, length: int = 1, help: str = ""
    ) -> StrettoError:
        place = self.at if at is None else at
        line = self.text.count("\n", 0, place) + 1
        begin = self.text.rfind("\n", 0, place) + 1
        end = self.text.find("\n", place)
        shown = self.text[begin:] if end < 0 else self.text[begin:end]
        span = Span(self.source, line, place - begin + 1, length, shown)
        return StrettoError(code, message, span=span, expected=expected, help=help)


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _print_pass(step: Pass) -> str:
    given = [
        f"{option_name(f.name)}={print_value(getattr(step, f.name))}"
        for f in fields(step)
        if _is_required(f) or getattr(step, f.name) != f.default
    ]
    return f"{step.name}{{{' '.join(given)}}}" if given else step.name
