"""Forward times of the nodes of a graph, in bytes moved (`costs/compute.py`): for balancing stages."""

from __future__ import annotations

from ...costs.compute import op_time
from ...ir.module import Module
from ..graph import Graph, Node


class OpCosts:
    """Costs of the nodes of a module; a function's are counted once."""

    def __init__(self, module: Module) -> None:
        self._functions = module.functions()
        self._known: dict[str, float] = {}

    def time(self, node: Node) -> float:
        """The forward time of a node, in bytes moved."""
        if node.call is not None:
            return op_time(node.call, node.operands, node.values)
        name = str(node.callee)
        if name not in self._known:
            self._known[name] = sum(self.time(each) for each in Graph.of(self._functions[name]).nodes)
        return self._known[name]
