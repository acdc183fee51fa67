"""Remarks of what happens at many places alike: one for each message and line of the model, with a count.

Repeated layers count as one place: `layers.0.mlp` and `layers.1.mlp` are `layers.*.mlp`.
"""

from __future__ import annotations

from collections import Counter

from ..ir.locations import Origin
from .base import Remark, RemarkKind


class Tally:
    """Collects what one pass did and declined."""

    def __init__(self, pass_name: str) -> None:
        self._name = pass_name
        self._counts: Counter[tuple[RemarkKind, str, Origin]] = Counter()

    def add(self, kind: RemarkKind, message: str, origin: Origin, count: int = 1) -> None:
        """Count what the message says as done `count` times at a place."""
        self._counts[kind, message, _place(origin)] += count

    def applied(self, message: str, origin: Origin, count: int = 1) -> None:
        """Count a rewrite."""
        self.add(RemarkKind.APPLIED, message, origin, count)

    def missed(self, message: str, origin: Origin, count: int = 1) -> None:
        """Count something that was declined; the message says why."""
        self.add(RemarkKind.MISSED, message, origin, count)

    def remarks(self) -> tuple[Remark, ...]:
        """One remark for each message at each place, in the order of the first of each."""
        found = []
        for (kind, message, origin), count in self._counts.items():
            times = f"{count} x " if count > 1 or kind is RemarkKind.APPLIED else ""
            found.append(Remark(self._name, kind, times + message, origin))
        return tuple(found)


def _place(origin: Origin) -> Origin:
    """The place with the numbers in its module path left open.

    >>> _place(Origin("layers.3.mlp", "gpt.py", 5)).module_path
    'layers.*.mlp'
    """
    path = ".".join("*" if part.isdigit() else part for part in origin.module_path.split("."))
    return Origin(path, origin.file, origin.line, origin.backward)
