"""Gathers of stored parameters: which of them serve one use, so that a task of a pipeline may gather again."""

from __future__ import annotations

from collections.abc import Container

from ...ir.collectives import ALL_GATHER
from ...ir.module import Record
from ...ir.operations import use_of
from ..graph import Graph, Node


def is_between_nodes(node: Node, record: Record) -> bool:
    """Whether a node gathers a parameter over the axes that `within` leaves out, which a step crosses once."""
    axes = node.call.args[1] if node.call is not None and node.name == ALL_GATHER else []
    return bool(axes) and "within" in record and not {*axes} & {*record["within"]}


def gathers_of_uses(graph: Graph, varying: Container[Node], once: Container[Node]) -> set[Node]:
    """The nodes that gather a stored parameter for one use, and those that need parameters and such gathers alone.

    All of their users are among them, or in `varying` (they run for each microbatch) and not in `once`.
    """
    records = {value: record for value, record in graph.arguments if record.get("stored")}
    found: set[Node] = set()
    for node in graph.nodes:
        if node in varying or node in once:
            continue
        record = next((records[v] for v in node.operands if v in records), None)
        is_once = record is None or record.get("gather") == "once" or is_between_nodes(node, record)
        is_gather = use_of(node.op) is not None and not is_once
        if is_gather or any(graph.maker.get(v) in found for v in node.operands):
            found.add(node)
        elif record is not None and len(node.operands) == 1:
            records.update(dict.fromkeys(node.values, record))
    returned = {value for value, _ in graph.results}
    for node in reversed(graph.nodes):
        users = [user for value in node.values for user in graph.users.get(value, ())]
        if returned & {*node.values} or any(
            user not in found and (user in once or user not in varying) for user in users
        ):
            found.discard(node)
    return found
