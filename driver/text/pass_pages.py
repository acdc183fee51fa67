"""`stretto passes`: the list of passes, and the page of one. What they say is read from the passes' own sources."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...ir.level import Level
from ...passes.registry import TABLE, UPSTREAM, names
from .console import heading, place_text, say, table
from .pass_options import PassOption, options_of
from .pass_sources import PassSource

if TYPE_CHECKING:
    from ...runtime.program.arguments import Json

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
    if name not in TABLE:
        return _page_of_another_package(name)
    source = PassSource.of(name)
    return PassPage(
        name, "stretto", source.text, source.options, source.file, facts_of(source.text), source.levels
    )  # fmt: skip


def _page_of_another_package(name: str) -> PassPage:
    from ...passes.pass_class import pass_class  # loads torch and MLIR, which Stretto's own pages do without

    cls = pass_class(name)
    origin = cls.__module__.partition(".")[0]
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
