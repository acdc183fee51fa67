"""Remarks with counts: one for each message and line of the model.

Repeated layers count as one place: `layers.0.mlp` and `layers.1.mlp` are `layers.*.mlp`.
"""

from __future__ import annotations

from collections import Counter

from ..ir.locations import Origin
from .base import Remark, RemarkKind


class CountedRemarks:
    """Collects the remarks of one pass and counts equal ones."""

    def __init__(self, pass_name: str) -> None:
        self._name = pass_name
        self._counts: Counter[tuple[RemarkKind, str, Origin]] = Counter()

    def add(self, kind: RemarkKind, message: str, origin: Origin, count: int = 1) -> None:
        """Add a remark that stands for `count` occurrences at a place."""
        self._counts[kind, message, _place(origin)] += count

    def applied(self, message: str, origin: Origin, count: int = 1) -> None:
        """Count a rewrite."""
        self.add(RemarkKind.APPLIED, message, origin, count)

    def missed(self, message: str, origin: Origin, count: int = 1) -> None:
        """Count a missed rewrite; the message says why."""
        self.add(RemarkKind.MISSED, message, origin, count)

    def remarks(self) -> tuple[Remark, ...]:
        """One remark for each message and place, in order of first occurrence."""
        remarks = []
        for (kind, message, origin), count in self._counts.items():
            times = f"{count} x " if count > 1 or kind is RemarkKind.APPLIED else ""
            remarks.append(Remark(self._name, kind, times + message, origin))
        return tuple(remarks)


def _place(origin: Origin) -> Origin:
    """The place with `*` for the numbers in its module path.

    >>> _place(Origin("layers.3.mlp", "gpt.py", 5)).module_path
    'layers.*.mlp'
    """
    path = ".".join("*" if part.isdigit() else part for part in origin.module_path.split("."))
    return Origin(path, origin.file, origin.line, origin.backward)
