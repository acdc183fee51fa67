"""Who looks on while a module runs: told of every step of every rank, and of every value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

Path = tuple[int, ...]
"""One execution of a step: its number in its function, after those of the calls that led there, outermost first.

Where stages have entries of their own, the entry's number comes before them.
"""


class Observer(Protocol):
    """Must not change what it is shown."""

    def begins(self, rank: int, path: Path) -> None:
        """A rank is about to run a step, or looks again whether it may go on."""

    def made(self, rank: int, path: Path, values: Sequence[Any]) -> None:
        """A step has given these: tensors, lists of tensors, None for what it does not compute; no futures."""
