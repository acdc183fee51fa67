"""Where each op of the table gets arguments from, as `arguments.txt` says."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

FILE = Path(__file__).with_name("arguments.txt")


class Source(StrEnum):
    """A word of `arguments.txt`."""

    OWN = "own"
    SCHEMA = "schema"
    DATABASE = "database"
    NONE = "none"


def sources() -> dict[str, Source]:
    """By op the source of its arguments. Raises ValueError for a line without a reason where it needs one."""
    found = {}
    for line in FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        name, source, *reason = line.split()
        if (Source(source) is Source.NONE) != bool(reason):
            raise ValueError(f"arguments.txt: a reason belongs to ops without arguments, and only to them: {line}")
        found[name] = Source(source)
    return found
