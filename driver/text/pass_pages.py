"""`stretto passes`: the list of passes, and the page of one. What they say is read from the passes' own sources."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from textwrap import dedent
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from ...dsl.plan import Plan
from ...ir.module import Level
from ...passes.base import Pass
from ...passes.option_values import Range, print_value
from ...passes.pipeline_text import option_name
from ...passes.registry import TABLE, UPSTREAM, names, pass_class
from ...runtime.program.arguments import Json
from .console import heading, place_text, say, table

UPSTREAM_LINES: dict[str, str] = {
    "canonicalize": "Rewrite operations to their canonical forms: fold constants, drop what has no effect.",
    "cse": "Compute equal expressions once, and drop those that nothing uses.",
    "remove-dead-values": "Drop values, arguments and results that nothing uses.",
    "sccp": "Propagate constants through branches and calls.",
    "strip-debuginfo": "Drop the locations of all operations.",
    "symbol-dce": "Drop private functions that nothing calls.",
}
"""What upstream's passes do, in one line each."""

FACTS = ("Needs", "Keeps", "Cost", "Source")
"""What a pass's docstring ends with, each once at the most: the label, a colon, and text."""

_FACT = re.compile(rf"\b({'|'.join(FACTS)}): ")
_SKETCH = re.compile(r"^(?:Before\b.*\bAfter\b|Before +\S)")
"""The first line of a sketch of what a pass does; an empty line ends it."""


@dataclass(frozen=True)
class PassOption:
    """One option: its kebab-case name, what values it takes, its default, and its field's docstring."""

    name: str
    type: str
    default: str | None
    """As a pipeline says it; None: it must be given."""
    text: str


@dataclass(frozen=True)
class PassPage:
    """What is known of one pass. `text` is the docstring of its module, before and after included."""

    name: str
    origin: str
    """stretto, mlir, or the package that it comes from."""
    text: str
    options: tuple[PassOption, ...] = ()
    file: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What it needs, keeps, costs, and where it comes from, by label; without those that are not said."""
    levels: tuple[str, ...] = ()
    """Of the modules that it takes."""

    @property
    def line(self) -> str:
        """What it does: the docstring's first line."""
        return self.text.partition("\n")[0]

    @property
    def prose(self) -> str:
        """The paragraphs below the first line, without the sketch and the facts."""
        paragraphs = _FACT.split(self.text)[0].split("\n\n")[1:]
        return "\n\n".join(p.strip() for p in paragraphs if p.strip() and not _SKETCH.match(p.strip()))

    def to_json(self) -> Mapping[str, Json]:
        options: Json = [{"name": o.name, "type": o.type, "default": o.default, "text": o.text} for o in self.options]
        return {
            "name": self.name, "origin": self.origin, "line": self.line, "text": self.text, "options": options,
            "file": self.file or None, "levels": list(self.levels),
            **{label.lower(): text for label, text in self.facts.items()},
        }  # fmt: skip


def pass_page(name: str) -> PassPage:
    """The page of a pass; E0410 for an unknown name, E0411 for one of another package that is no pass."""
    if name in UPSTREAM:
        return PassPage(name, "mlir", UPSTREAM_LINES[name], levels=tuple(Level))
    cls = pass_class(name)
    origin = "stretto" if name in TABLE else cls.__module__.partition(".")[0]
    text = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or cls.__doc__ or "")
    file = inspect.getsourcefile(cls) or ""
    return PassPage(name, origin, text, options_of(cls), file, facts_of(text), tuple(sorted(cls.levels)))


def all_pages() -> tuple[PassPage, ...]:
    """Every pass, sorted by name."""
    return tuple(pass_page(name) for name in names())


def facts_of(text: str) -> dict[str, str]:
    """What a docstring says under each label of `FACTS`, on one line.

    >>> facts_of("Do it.\\n\\nNeeds: a level.   Keeps: values.")
    {'Needs': 'a level.', 'Keeps': 'values.'}
    """
    _, *parts = _FACT.split(text)
    found = {label: " ".join(said.split()) for label, said in zip(parts[::2], parts[1::2], strict=True)}
    return {label: found[label] for label in FACTS if label in found}


def options_of(cls: type[Pass]) -> tuple[PassOption, ...]:
    """The options of a pass: the fields of its class, in order."""
    types, texts = get_type_hints(cls, include_extras=True), _field_docstrings(dedent(inspect.getsource(cls)))
    return tuple(
        PassOption(option_name(each.name), type_text(types[each.name]), _default(each), texts.get(each.name, ""))
        for each in fields(cls)
    )


def type_text(type_: Any) -> str:
    """What values an option of this type takes.

    >>> type_text(int), type_text(Plan)
    ('integer', 'path of a plan')
    """
    if get_origin(type_) is Annotated:
        base, *limits = get_args(type_)
        return " ".join((type_text(base), *(str(each) for each in limits if isinstance(each, Range))))
    if get_origin(type_) in (Union, UnionType):
        return " or ".join("none" if each is NoneType else type_text(each) for each in get_args(type_))
    if isinstance(type_, type) and issubclass(type_, Enum):
        return " or ".join(str(member.value) for member in type_)
    known = {bool: "true or false", int: "integer", float: "number", str: "text", Plan: "path of a plan"}
    return known.get(type_, getattr(type_, "__name__", str(type_)))


def _default(each: Field[Any]) -> str | None:
    if each.default is not MISSING:
        return print_value(each.default)
    return None if each.default_factory is MISSING else print_value(each.default_factory())


def _field_docstrings(source: str) -> dict[str, str]:
    """The string that stands behind each field of a class, on one line, by the field's name."""
    [definition] = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    found = {}
    for node, following in zip(definition.body, definition.body[1:], strict=False):
        match node, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def show_list(pages: tuple[PassPage, ...]) -> None:
    """Print a line for each pass."""
    table(("pass", "of", "what it does"), [(page.name, page.origin, page.line) for page in pages])


def show_page(page: PassPage) -> None:
    """Print all that is known of a pass."""
    say(f"{page.name} ({place_text(page.file, 0) or page.origin})")
    say()
    say(page.text)
    heading("Options")
    if not page.options:
        say("  MLIR's own, in braces" if page.origin == "mlir" else "  none")
    for option in page.options:
        say(f"  {option.name}={option.type}  {'required' if option.default is None else f'default {option.default}'}")
        say(f"      {option.text}")
