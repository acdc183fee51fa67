"""Layers as folding sees them: a number in a numbered container ("layers.3"), and the order of their calls."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from .locations import Origin

_NUMBERED = re.compile(r"^(?P<container>(?:[^.\d][^.]*\.)*[^.\d][^.]*)\.(?P<index>\d+)(?=\.|$)")
_Item = TypeVar("_Item", bound=Hashable)


@dataclass(frozen=True)
class Layer:
    """One layer of one container, in one direction."""

    container: str
    index: int
    backward: bool

    @property
    def path(self) -> str:
        """The module path of the layer."""
        return f"{self.container}.{self.index}"

    @property
    def direction(self) -> str:
        """ "forward" or "backward"."""
        return "backward" if self.backward else "forward"

    @property
    def function_name(self) -> str:
        """The name of a function that computes it, which other layers of its container share."""
        return f"{re.sub('[^A-Za-z0-9_]', '_', self.container)}_{self.direction}"


@lru_cache(maxsize=65536)
def layer_of(module_path: str, backward: bool) -> Layer | None:
    """The layer that an operation with this module path belongs to; None for an operation outside of all layers."""
    match = _NUMBERED.match(module_path)
    return Layer(match["container"], int(match["index"]), backward) if match else None


def unnumbered(origin: Origin) -> Origin:
    """The place of an operation in all instances: "layers.*.mlp"."""
    return Origin(unnumbered_path(origin.module_path), origin.file, origin.line, origin.backward)


@lru_cache(maxsize=65536)
def unnumbered_path(module_path: str) -> str:
    """A module path without the number of its layer: "layers.*.mlp"."""
    return _NUMBERED.sub(lambda m: f"{m['container']}.*", module_path)


def numbered_names(names: Sequence[str]) -> list[str]:
    """The names, made unique by a number behind all but the first of equal ones."""
    counts: dict[str, int] = {}
    unique = []
    for name in names:
        number = counts.get(name, 0)
        counts[name] = number + 1
        unique.append(f"{name}_{number}" if number else name)
    return unique


def call_order(positions: Mapping[_Item, int], needs: Iterable[tuple[_Item, _Item]]) -> tuple[list[_Item], set[_Item]]:
    """The items in a topological order close to that of their positions.

    `needs` has (maker, user) for each value that crosses from one item to another. The second result has the items on
    or behind a cycle, which have no place in the order.
    """
    import networkx as nx  # here, since `stretto passes` imports every pass to list it

    graph: nx.DiGraph[_Item] = nx.DiGraph()
    graph.add_nodes_from(positions)
    graph.add_edges_from(needs)
    items: list[_Item] = []
    try:
        for item in nx.lexicographical_topological_sort(graph, key=positions.__getitem__):
            items.append(item)
    except nx.NetworkXUnfeasible:
        return items, set(positions) - set(items)
    return items, set()
