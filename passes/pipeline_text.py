"""Pipelines as text, in MLIR's syntax: `fold-layers,propagate-placements,start-collectives{option=value other=value}`.

Options are the fields of a pass's dataclass, in kebab-case; values are parsed by the field's type: int, float, bool
(true, false), text, an enumeration's value, or a plan file's path (`option_values.py`). Text with blanks or braces
stands in double quotes, or in braces that match. Options of upstream's passes are MLIR's to judge.

The anchors `builtin.module(..)` and `func.func(..)` may stand around passes, nested too, and are dropped: every pass
runs on the module, and upstream's on all functions in it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, get_type_hints

from ..diagnostics import Span, StrettoError
from ..ir.module import upstream_problem
from .base import Pass
from .manager import Step
from .option_values import VALUE, closing_brace, option_name, parse_value, print_value
from .pass_class import pass_class
from .registry import UPSTREAM, unknown_pass

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_ANCHOR = re.compile(r"(?:builtin\.module|func\.func)\s*\(")
_NO_OPTION = re.compile(r"no such option (?P<name>\S+)")
"""What MLIR says of an option that its pass has not."""


def parse_pipeline(text: str, source: str = "-p") -> list[Step]:
    """The passes that a pipeline names. Errors E0410 to E0416 point at the place in the text; `source` names it."""
    return list(_Parser(text, source).steps())


def print_pipeline(steps: Sequence[Step]) -> str:
    """The text that `parse_pipeline` reads as these passes."""
    return ",".join(step if isinstance(step, str) else _print_pass(step) for step in steps)


@dataclass(frozen=True)
class _OptionText:
    """The text of an option's value, and where name and value stand."""

    text: str
    name_start: int
    value_start: int
    source: str
    """Name and value as they stand in the pipeline."""


@dataclass
class _Parser:
    text: str
    source: str
    position: int = 0
    opened: list[int] = field(default_factory=list)
    """The places of the anchors that are not closed yet."""

    def steps(self) -> Iterator[Step]:
        """Every pass in order."""
        self._blanks()
        if self.position == len(self.text):
            raise self._error("E0412", "the pipeline is empty", "expected the name of a pass")
        while True:
            self._anchors()
            yield self._step()
            self._closed()
            if self.position == len(self.text):
                return
            if self.text[self.position] != ",":
                expected = '"," or ")"' if self.opened else '"," or the end'
                raise self._error("E0412", f'unexpected "{self.text[self.position]}"', f"expected {expected}")
            self.position += 1
            self._blanks()

    def _anchors(self) -> None:
        """Pass the anchors before a pass."""
        while (match := _ANCHOR.match(self.text, self.position)) is not None:
            self.opened.append(self.position)
            self.position = match.end()
            self._blanks()

    def _closed(self) -> None:
        """Pass the ends of anchors behind a pass; at the end of the text all have ended."""
        self._blanks()
        while self.opened and self.text.startswith(")", self.position):
            self.opened.pop()
            self.position += 1
            self._blanks()
        if self.opened and self.position == len(self.text):
            raise self._error(
                "E0412", 'this "(" is never closed', 'expected ")" before the end',
                position=self.text.index("(", self.opened[-1]),
            )  # fmt: skip

    def _step(self) -> Step:
        start = self.position
        name = self._take(_NAME, "E0412", "the name of a pass")
        if self.text.startswith("(", self.position):
            anchors = 'expected "builtin.module" or "func.func" before "("'
            raise self._error("E0412", f'"{name}" is no anchor', anchors, position=start, length=len(name))
        is_upstream = name in UPSTREAM
        options = self._options(is_upstream)
        if is_upstream:
            return self._upstream(name, options)
        try:
            cls = pass_class(name)
        except StrettoError as error:
            if error.code != "E0410":
                raise
            raise self._error(
                error.code, error.message, position=start, length=len(name), help=unknown_pass(name).help
            ) from None
        return self._build(cls, name, options, start)

    def _upstream(self, name: str, options: Mapping[str, _OptionText]) -> str:
        """A pass of upstream's; E0413 with MLIR's message where its options are not right."""
        if not options:
            return name
        step = f"{name}{{{' '.join(option.source for option in options.values())}}}"
        problem = upstream_problem(step)
        if not problem:
            return step
        unknown = _NO_OPTION.search(problem)
        refused = options.get(unknown["name"]) if unknown else None
        place = refused or next(iter(options.values()))
        raise self._error(
            "E0413",
            f'MLIR refuses the options of "{name}": {problem}',
            position=place.name_start,
            length=len(place.source),
        )

    def _options(self, is_upstream: bool) -> dict[str, _OptionText]:
        """The options in braces; one of upstream's may stand without a value."""
        found: dict[str, _OptionText] = {}
        if self.position == len(self.text) or self.text[self.position] != "{":
            return found
        opened = self.position
        self.position += 1
        while True:
            self._blanks()
            if self.position == len(self.text):
                raise self._error("E0412", 'this "{" is never closed', 'expected "}" before the end', position=opened)
            if self.text[self.position] == "}":
                self.position += 1
                return found
            name_start = self.position
            name = self._take(_NAME, "E0412", "the name of an option")
            if name in found:
                raise self._error("E0412", f'option "{name}" is given twice', position=name_start, length=len(name))
            value_start, text = self.position, ""
            if self.text.startswith("=", self.position):
                self.position += 1
                value_start = self.position
                text = self._option_text(name)
            elif not is_upstream:
                raise self._error("E0412", f'option "{name}" has no value', f'expected "=" after "{name}"')
            found[name] = _OptionText(text, name_start, value_start, self.text[name_start : self.position])

    def _option_text(self, name: str) -> str:
        """The text of a value, without its quotes or braces."""
        start = self.position
        if self.text.startswith("{", start):
            closed = closing_brace(self.text, start)
            if closed is None:
                raise self._error("E0412", 'this "{" is never closed', 'expected "}" before the end')
            self.position = closed + 1
            return self.text[start + 1 : closed]
        match = VALUE.match(self.text, start)
        if match is None:
            raise self._error("E0412", f'option "{name}" has no value', "expected a value")
        self.position = match.end()
        return match["quoted"] if match["bare"] is None else match["bare"]

    def _build(self, cls: type[Pass], name: str, options: Mapping[str, _OptionText], start: int) -> Pass:
        known = {option_name(f.name): f for f in fields(cls)}
        types = get_type_hints(cls, include_extras=True)
        values: dict[str, Any] = {}
        for option, value in options.items():
            if option not in known:
                near = difflib.get_close_matches(option, known, 1)
                hint = f'did you mean "{near[0]}"?' if near else f"options: {', '.join(known) or 'none'}"
                raise self._error(
                    "E0414",
                    f'pass "{name}" has no option "{option}"',
                    position=value.name_start,
                    length=len(option),
                    help=hint,
                )
            values[known[option].name] = self._value(types[known[option].name], option, value)
        missing = [option for option, f in known.items() if f.name not in values and _is_required(f)]
        if missing:
            raise self._error(
                "E0415", f'pass "{name}" needs the option "{missing[0]}"', position=start, length=len(name),
                help=f"write {name}{{{missing[0]}=...}}",
            )  # fmt: skip
        return cls(**values)

    def _value(self, type_: Any, option: str, value: _OptionText) -> Any:
        try:
            return parse_value(type_, value.text)
        except ValueError as error:
            raise self._error(
                "E0416",
                f'option "{option}" is "{value.text}"',
                f"expected {error}",
                position=value.value_start,
                length=len(value.text),
            ) from None

    def _take(self, pattern: re.Pattern[str], code: str, what: str) -> str:
        match = pattern.match(self.text, self.position)
        if match is None:
            found = f'"{self.text[self.position]}"' if self.position < len(self.text) else "end"
            raise self._error(code, f"unexpected {found}", f"expected {what}")
        self.position = match.end()
        return match.group()

    def _blanks(self) -> None:
        while self.position < len(self.text) and self.text[self.position].isspace():
            self.position += 1

    def _error(
        self,
        code: str,
        message: str,
        expected: str = "",
        *,
        position: int | None = None,
        length: int = 1,
        help: str = "",
    ) -> StrettoError:
        place = self.position if position is None else position
        line = self.text.count("\n", 0, place) + 1
        begin = self.text.rfind("\n", 0, place) + 1
        end = self.text.find("\n", place)
        shown = self.text[begin:] if end < 0 else self.text[begin:end]
        span = Span(self.source, line, place - begin + 1, length, shown)
        return StrettoError(code, message, span=span, expected=expected, help=help)


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _print_pass(step: Pass) -> str:
    options = [
        f"{option_name(f.name)}={print_value(getattr(step, f.name))}"
        for f in fields(step)
        if _is_required(f) or getattr(step, f.name) != f.default
    ]
    return f"{step.name}{{{' '.join(options)}}}" if options else step.name
