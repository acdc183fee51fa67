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
"""The least columns of a table's names."""
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

    On a terminal it fits the width, at most 100 columns: long names are broken after dots. Piped, each row is one line.
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
    for header in headers:
        drawn.add_column(header, justify="right" if header in right else "left", no_wrap=True)
    others = sum(2 + max(len(row[column]) for row in (headers, *rows)) for column in range(1, len(headers)))
    width = max(_NARROWEST, min(_WIDEST, console.width) - others)
    for name, *row in rows:
        drawn.add_row(*(Text(cell) for cell in (break_name(name, width), *row)))
    console.print(drawn, width=max(min(_WIDEST, console.width), others + _NARROWEST))


def break_name(name: str, width: int) -> str:
    """A dotted name on as many lines of at most `width` characters as it needs, broken after dots.

    >>> broken("model.layers.*.mlp.up_proj", 15)
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


class Bar(Protocol):
    """A progress bar, or nothing."""

    def show(self, what: str, done: int | None = None) -> None:
        """Show the current step, and how many are done."""
        ...


class _Silent:
    def show(self, what: str, done: int | None = None) -> None:
        """See `Bar.show`."""


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
