"""What a search for idioms found: how many of each operation were raised, and what came close but was left."""

from __future__ import annotations

from collections import Counter

from ....ir.locations import Origin
from .dataflow import Node


class Findings:
    """Collected over the functions of a module."""

    def __init__(self) -> None:
        self.raised: Counter[str] = Counter()
        """How many operations of each name ("nn.rms_norm") were put in."""
        self.missed: list[tuple[str, Origin]] = []
        """What differed, and where."""

    def miss(self, idiom: str, difference: str, node: Node) -> None:
        """Record that `node` begins what looks like an idiom, but is left because of `difference`."""
        self.missed.append((f"{idiom} left as it is: {difference}", node.origin))
