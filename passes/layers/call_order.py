"""The order of main when each folded instance of a layer is one call."""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.bindings import Value
from ..graph import Node
from .instances import Instance

Item = Node | Instance
"""A single operation of main, or a folded instance."""


def call_order(nodes: Sequence[Node], groups: Sequence[Sequence[Instance]]) -> tuple[list[Item], list[Instance]]:
    """Operations and folded instances in a topological order close to the old one.

    The second list has the instances on or behind a cycle: they cannot run as one call.
    """
    import networkx as nx  # here, since `stretto passes` imports every pass to list it

    owner = {node: instance for group in groups for instance in group for node in instance.nodes}
    graph: nx.DiGraph[Item] = nx.DiGraph()
    last: dict[Item, int] = {}
    maker: dict[Value, Item] = {}
    for position, node in enumerate(nodes):
        item = owner.get(node, node)
        last[item] = position
        maker.update(dict.fromkeys(node.values, item))
    graph.add_nodes_from(last)
    for node in nodes:
        item = owner.get(node, node)
        graph.add_edges_from((maker[v], item) for v in node.operands if v in maker and maker[v] is not item)
    items: list[Item] = []
    try:
        for item in nx.lexicographical_topological_sort(graph, key=last.__getitem__):
            items.append(item)
    except nx.NetworkXUnfeasible:
        reached = set(items)
        return items, [item for item in last if item not in reached and isinstance(item, Instance)]
    return items, []
