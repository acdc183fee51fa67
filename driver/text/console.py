"""Console output: tables (drawn on a terminal, plain when piped), sizes, paths, a progress bar.

Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from ...diagnostics import printable

_WIDEST = 100
"""The most columns of a table."""
_NARROWEST = 20
"""The least columns of a table's names, and of texts that are wrapped."""
_GAP = 2
"""Columns between two columns of a table."""
_LONGEST_PLACE = 32
"""The most characters of a source file's path."""


def say(text: str = "") -> None:
    """One line of the result."""
    sys.stdout.write(printable(text) + "\n")


def note(text: str) -> None:
    """One line that is not part of the result."""
    sys.stderr.write(printable(text) + "\n")


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print a table; the columns named in `right` are right-aligned, and the first holds names.

    On a terminal it fits the width, at most 100 columns: texts are wrapped and names stay whole, but for dotted names,
    which are broken after dots where there is no text to wrap. Piped, each row is one line.
    """
    headers = [printable(header) for header in headers]
    rows = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _draw(headers, rows, right)
        return
    widths = [max(len(row[column]) for row in (headers, *rows)) for column in range(len(headers))]
    for row in (headers, *rows):
        cells = [
            cell.rjust(width) if header in right else cell.ljust(width)
            for cell, width, header in zip(row, widths, headers, strict=True)
        ]
        say("  " + "  ".join(cells).rstrip())


def _draw(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    drawn = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    widest = [max(len(row[column]) for row in (headers, *rows)) for column in range(len(headers))]
    limit = min(_WIDEST, console.width)
    widths = _fitting(widest, [header in right for header in headers], limit)
    for header, width in zip(headers, widths, strict=True):
        drawn.add_column(header, justify="right" if header in right else "left", width=width)
    for name, *row in rows:
        drawn.add_row(*(Text(cell) for cell in (break_name(name, widths[0]), *row)))
    console.print(drawn, width=max(limit, sum(widths) + _GAP * (len(widths) - 1)))


def _fitting(widest: Sequence[int], is_right: Sequence[bool], limit: int) -> list[int]:
    """The widths of columns that fit `limit`, from the widest cells: texts shrink, then the names of the first column.

    >>> _fitting([10, 60, 5], [False, False, True], 60)
    [10, 41, 5]
    """
    widths = list(widest)
    texts = [column for column in range(1, len(widths)) if not is_right[column]]
    excess = sum(widths) + _GAP * (len(widths) - 1) - limit
    while excess > 0 and texts:
        longest = max(texts, key=lambda column: widths[column])
        if widths[longest] <= _NARROWEST:
            break
        widths[longest] -= 1
        excess -= 1
    if excess > 0:
        widths[0] = max(min(_NARROWEST, widths[0]), widths[0] - excess)
    return widths


def break_name(name: str, width: int) -> str:
    """A dotted name on as many lines of at most `width` characters as it needs, broken after dots.

    >>> break_name("model.layers.*.mlp.up_proj", 15)
    'model.layers.*.\\n  mlp.up_proj'
    """
    lines = [""]
    for part in re.findall(r"[^. ]*[. ]?", name):
        if len(lines[-1]) + len(part.rstrip()) > width and lines[-1].strip():
            lines.append("  ")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def heading(text: str) -> None:
    """A heading between two parts of a result."""
    say()
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    sys.stdout.write(f"{bold}{printable(text)}{plain}\n")


_work = [""]
"""What the command does at present, as it last showed."""


def present_work() -> str:
    """The step that a progress bar shows, or would show on a terminal; empty where none has begun."""
    return _work[0]


class Bar(Protocol):
    """A progress bar, or nothing."""

    def show(self, what: str, done: int | None = None) -> None:
        """Show the current step, and how many are done."""
        ...


class _Silent:
    def show(self, what: str, done: int | None = None) -> None:
        """See `Bar.show`."""
        _work[0] = what


@contextmanager
def progress(total: int) -> Iterator[Bar]:
    """A bar of `total` steps on stderr if that is a terminal; it is removed at the end."""
    if not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), BarColumn(30), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("", total=total)

        class _Shown:
            def show(self, what: str, done: int | None = None) -> None:
                """See `Bar.show`."""
                shown.update(task, description=printable(what), completed=done)

        yield _Shown()


def size_text(size: int) -> str:
    """A size in bytes, in the largest unit that it fills.

    >>> size_text(512), size_text(1536), size_text(3 << 30)
    ('512 B', '1.5 KiB', '3.0 GiB')
    """
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1024 or unit == "TiB":
            break
    return f"{value:.1f} {unit}"


def place_text(file: str, line: int) -> str:
    """A source place: the file's path from the current folder, shortened where it is long, and the line."""
    if not file:
        return ""
    path = Path(file)
    if "site-packages" in path.parts:
        file = path.name
    elif path.is_relative_to(Path.cwd()):
        file = str(path.relative_to(Path.cwd()))
    if len(file) > _LONGEST_PLACE:
        file = str(Path("...", *path.parts[-2:]))
    return f"{file}:{line}" if line else file


def shape_text(shape: Sequence[int]) -> str:
    """A shape as torch writes it.

    >>> shape_text((2, 3))
    '[2, 3]'
    """
    return str(list(shape))


def count_text(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count_text(1, "rank"), count_text(3, "rank")
    ('1 rank', '3 ranks')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"
