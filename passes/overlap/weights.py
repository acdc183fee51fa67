"""How long operations take, for `schedule-lanes`: an interface, and its default by counts of bytes and FLOPs."""

from __future__ import annotations

from typing import Protocol

from ...costs.communication import LINK_BYTE, sent_bytes
from ...costs.compute import bytes_of, op_time
from ...ir.attributes import from_attribute
from ...ir.collectives import COLLECTIVES, collective
from ...ir.module import Module
from ...ir.placement import axes_size
from ...ir.types import element_bytes, from_mlir
from ..graph import Graph, Node
from ..sharding.rules.views import TABLE as VIEWS
from .kinds import kind_of


class Weights(Protocol):
    """The durations of the operations of a module, all in one unit, whichever."""

    def compute(self, node: Node) -> float:
        """What a node takes on the lane that computes; a call: with the collectives that nothing hides in it."""

    def collective(self, node: Node) -> float:
        """What a collective takes on its lane, from when its operand is there."""


class CountedWeights:
    """Durations in bytes moved (`costs/`): of operations by their bytes and FLOPs, of collectives by what a rank sends.

    Nothing is measured: ratios are good enough to order work by. A function's operations are counted once.
    """

    def __init__(self, module: Module) -> None:
        self._functions, self._mesh = module.functions(), module.mesh
        self._known: dict[str, float] = {}
        self._counted: dict[object, float] = {}

    def compute(self, node: Node) -> float:
        """See `Weights`."""
        if node.callee is not None:
            return self._function(node.callee)
        if node.call is None or node.name in VIEWS:
            return 0.0
        if node.name in COLLECTIVES:
            return self.collective(node)
        key = (node.name, tuple(map(str, (value.type for value in (*node.operands, *node.values)))))
        if key not in self._counted:
            self._counted[key] = op_time(node.call, node.operands, node.values)
        return self._counted[key]

    def collective(self, node: Node) -> float:
        """See `Weights`."""
        known = collective(node.name)
        if known is None:
            return 0.0
        ranks = axes_size(self._mesh, tuple(from_attribute(node.op.attributes["axes"])))
        taken = sum(map(bytes_of, node.operands[: None if known.coalesces else 1]))
        given = sum(element_bytes(from_mlir(value.type)) for value in node.values)
        return LINK_BYTE * sent_bytes(kind_of(node.op), max(taken, given), ranks)

    def _function(self, name: str) -> float:
        if name not in self._known:
            nodes = Graph.of(self._functions[name]).nodes
            self._known[name] = sum(map(self.compute, nodes))
        return self._known[name]
