"""`stretto passes`: the list of passes, and the page of one. What they say is read from the passes' own sources."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import dedent

from ..passes.registry import TABLE, UPSTREAM, names, pass_class
from ..runtime.arguments import Json
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


@dataclass(frozen=True)
class PassOption:
    """One option: its kebab-case name, the source text of its type and default, and its field's docstring."""

    name: str
    type: str
    default: str | None
    """None: it must be given."""
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

    @property
    def line(self) -> str:
        """What it does: the docstring's first line."""
        return self.text.partition("\n")[0]

    def to_json(self) -> Mapping[str, Json]:
        options: Json = [{"name": o.name, "type": o.type, "default": o.default, "text": o.text} for o in self.options]
        return {
            "name": self.name, "origin": self.origin, "line": self.line, "text": self.text, "options": options,
            "file": self.file or None,
        }  # fmt: skip


def pass_page(name: str) -> PassPage:
    """The page of a pass; E0410 for an unknown name, E0411 for one of another package that is no pass."""
    if name in UPSTREAM:
        return PassPage(name, "mlir", UPSTREAM_LINES[name])
    cls = pass_class(name)
    origin = "stretto" if name in TABLE else cls.__module__.partition(".")[0]
    text = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or cls.__doc__ or "")
    file = inspect.getsourcefile(cls) or ""
    return PassPage(name, origin, text, options_of(dedent(inspect.getsource(cls))), file)


def all_pages() -> tuple[PassPage, ...]:
    """Every pass, sorted by name."""
    return tuple(pass_page(name) for name in names())


def options_of(source: str) -> tuple[PassOption, ...]:
    """The options of a pass, from the source of its class: its fields in order, class variables left out.

    >>> options_of('class P:\\n    min_bytes: int = 4\\n    "Leave smaller ones alone (bytes)."')
    (PassOption(name='min-bytes', type='int', default='4', text='Leave smaller ones alone (bytes).'),)
    """
    [definition] = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    found = []
    for node, following in zip(definition.body, [*definition.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        type_ = ast.unparse(node.annotation)
        if type_.startswith("ClassVar"):
            continue
        default = None if node.value is None else ast.unparse(node.value)
        found.append(PassOption(node.target.id.replace("_", "-"), type_, default, _docstring(following)))
    return tuple(found)


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
        say("  none")
    for option in page.options:
        say(f"  {option.name}={option.type}  {'required' if option.default is None else f'default {option.default}'}")
        say(f"      {option.text}")


def _docstring(node: ast.stmt | None) -> str:
    """The text of a string that stands as a statement, on one line."""
    match node:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return " ".join(text.split())
        case _:
            return ""
