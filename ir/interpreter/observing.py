"""Observers of a run: they see every step and every value of every rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

Path = tuple[int, ...]
"""One execution of a step: the step indices of the calls that lead to it, outermost first, then its own.

In a pipelined module in order, the index of the entry function comes first.
"""


class Observer(Protocol):
    """Watches a run; must not change values."""

    def begins(self, rank: int, path: Path) -> None:
        """A rank begins a step, or retries one that waits."""

    def made(self, rank: int, path: Path, values: Sequence[Any]) -> None:
        """A step has computed values: tensors, lists of tensors, None for results not computed; no futures."""
