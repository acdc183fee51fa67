"""The rows of the zoo: one folder a system, with a plan, a target and a README of fixed sections."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...diagnostics import StrettoError
from ...dsl.spelling import did_you_mean, listed, similar_path

ZOO = Path(__file__).parents[2] / "examples" / "zoo"
"""Where the rows are, in a checkout and in an installed package."""
TARGET = "target.py"
PLAN_SUFFIX = ".plan"
README = "README.md"
SECTIONS = ("Source", "What the plan says", "Left out", "Published headline", "Checked")
"""The sections of a row's README, in this order; the text before them says what the system does."""
_WHOLE = "Nothing."


@dataclass(frozen=True)
class Row:
    """A published system as a plan."""

    name: str
    """The folder's."""
    folder: Path
    title: str
    summary: str
    """The first paragraph of the README, in one line."""
    sections: dict[str, str]
    """By the titles in `SECTIONS`, their text."""

    @property
    def plan(self) -> Path:
        """The plan's file."""
        return self.folder / f"{self.name}{PLAN_SUFFIX}"

    @property
    def target(self) -> str:
        """The tiny model, as the command line names it."""
        return f"{self.folder / TARGET}:model"

    @property
    def is_whole(self) -> bool:
        """Whether the plan has all mechanisms of the system."""
        return self.sections["Left out"] == _WHOLE


def find_rows(names: Sequence[str] = (), folder: Path | None = None) -> list[Row]:
    """The rows of these names in their order, or all by name.

    `folder` holds the rows' folders; None: `ZOO`. Errors: E0510 without a zoo there, E0511 for an unknown name, E0512
    for a row that lacks a file or a section.
    """
    zoo = ZOO if folder is None else folder
    known = _row_names(zoo)
    for name in names:
        if name not in known:
            raise StrettoError(
                "E0511", f'the zoo has no row "{name}"', expected=listed(known), help=did_you_mean(name, known)
            )
    return [_read(zoo / name) for name in (dict.fromkeys(names) or known)]


def _row_names(zoo: Path) -> list[str]:
    """The folders in the zoo, sorted."""
    try:
        known = sorted(path.name for path in zoo.iterdir() if (path / README).is_file())
    except OSError as error:
        help_ = (
            similar_path(str(zoo)) if zoo != ZOO else "give the folder with --folder DIR: a checkout has examples/zoo"
        )
        raise StrettoError("E0510", f'there is no zoo in "{zoo}": {error.strerror}', help=help_) from None
    if not known:
        raise StrettoError(
            "E0510", f'there is no zoo in "{zoo}": none of its folders has a {README}', expected=f"NAME/{README}"
        )
    return known


def _read(folder: Path) -> Row:
    for file in (f"{folder.name}{PLAN_SUFFIX}", TARGET):
        if not (folder / file).is_file():
            raise StrettoError("E0512", f'the row "{folder.name}" of the zoo has no file "{file}"')
    try:
        text = (folder / README).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StrettoError("E0507", f'cannot read "{folder / README}": {error}') from None
    top, *rest = re.split(r"^## ", text, flags=re.MULTILINE)
    titled = [section.partition("\n") for section in rest]
    found = tuple(title.strip() for title, _, _ in titled)
    heading = re.match(r"# (?P<title>.+)\n\n(?P<summary>(?:.+\n)+)", top)
    if heading is None or found != SECTIONS:
        raise StrettoError(
            "E0512",
            f'the README of the row "{folder.name}" has the sections {listed(found, "and") or "none"}',
            expected=f"a title, a paragraph, and the sections {listed(SECTIONS, 'and')}",
        )
    sections = {title.strip(): " ".join(body.split()) for title, _, body in titled}
    return Row(folder.name, folder, heading["title"], " ".join(heading["summary"].split()), sections)
