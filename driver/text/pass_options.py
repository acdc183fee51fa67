"""The options of a pass, as its page shows them: the fields of its class, with their docstrings."""

from __future__ import annotations

import ast
import inspect
from dataclasses import MISSING, Field, dataclass, fields
from enum import Enum
from textwrap import dedent
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

from ...dsl.plan import Plan
from ...passes.option_values import Range, option_name, print_value

if TYPE_CHECKING:
    from ...passes.base import Pass


@dataclass(frozen=True)
class PassOption:
    """One option: its kebab-case name, what values it takes, its default, and its field's docstring."""

    name: str
    type: str
    default: str | None
    """As a pipeline says it; None: it must be given."""
    text: str


def options_of(cls: type[Pass]) -> tuple[PassOption, ...]:
    """The options of a pass whose class is at hand: its fields, in order."""
    types = get_type_hints(cls, include_extras=True)
    [definition] = [node for node in ast.parse(dedent(inspect.getsource(cls))).body if isinstance(node, ast.ClassDef)]
    texts = field_docstrings(definition)
    return tuple(
        PassOption(option_name(each.name), type_text(types[each.name]), default_text(each), texts.get(each.name, ""))
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


def default_text(each: Field[Any]) -> str | None:
    """The default of a field, as a pipeline says it; None where there is none."""
    if each.default is not MISSING:
        return print_value(each.default)
    return None if each.default_factory is MISSING else print_value(each.default_factory())


def field_docstrings(definition: ast.ClassDef) -> dict[str, str]:
    """The string that stands behind each field of a class, on one line, by the field's name."""
    found = {}
    for node, following in zip(definition.body, definition.body[1:], strict=False):
        match node, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found
