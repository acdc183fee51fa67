"""The findings of a search for idioms: counts of raised operations, and near matches that were left."""

from __future__ import annotations

from collections import Counter

from ....ir.locations import Origin
from .dataflow import Node


class Findings:
    """Collected over the functions of a module."""

    def __init__(self) -> None:
        self.raised: Counter[str] = Counter()
        """The number of inserted operations by name ("nn.rms_norm")."""
        self.missed: list[tuple[str, Origin]] = []
        """(difference, place) of each near match."""

    def miss(self, idiom: str, difference: str, node: Node) -> None:
        """Record a near match of an idiom at `node`, left because of `difference`."""
        self.missed.append((f"{idiom} left as it is: {difference}", node.origin))
