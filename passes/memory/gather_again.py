"""Gathers of stored parameters for what the backward computes again: it must not keep what the forward gathered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ...ir.bindings import Value, mlir
from ...ir.dialects.context import context
from ...ir.locations import to_location
from ...ir.module import Module
from ...ir.operations import is_recomputed, set_use, use_of
from ..graph import Graph, Node, copy_node
from .gathers import is_between_nodes
from .kept import behind

Chain = tuple[Node, ...]
"""The operations that gather one stored parameter, from the first that communicates to the last, in order."""


def gather_again(module: Module) -> None:
    """Let all that main's backward computes again, and the layers that do, read gathers of the backward."""
    _Gathers(Graph.of(module.functions()["main"])).run()


@dataclass
class _Gathers:
    graph: Graph
    chains: dict[object, Value] = field(default_factory=dict)
    """By what is gathered and for which module: the result of the backward's chain."""
    _positions: dict[Value, int] = field(default_factory=dict)
    _uses: int = 0

    def run(self) -> None:
        nodes = self.graph.nodes
        backward = behind(self.graph)
        uses = [use for node in nodes if (use := use_of(node.op)) is not None]
        if not uses:
            return
        self._uses = max(uses) + 1
        for index, node in enumerate(nodes):
            self._positions.update(dict.fromkeys(node.values, index))
            for value in node.values if node in backward else ():
                if chain := self._chain(value):
                    self.chains.setdefault(_key(chain), value)
        for index, node in enumerate(nodes):
            if node in backward and (node.callee is not None or is_recomputed(node.op)):
                for position, value in enumerate(node.op.operands):
                    chain = self._chain(value)
                    if chain and not any(each in backward for each in chain):
                        node.op.operands[position] = self._gathered(chain, node, index)

    def _chain(self, value: Value) -> Chain:
        """The gather of a stored parameter that a value is; empty if it is none, or one gather serves all uses."""
        nodes: list[Node] = []
        while (node := self.graph.maker.get(value)) is not None and node.call is not None and len(node.operands) == 1:
            nodes.append(node)
            [value] = node.operands
        records = dict(self.graph.arguments)
        record = records.get(value, {})
        while nodes and (use_of(nodes[-1].op) is None or is_between_nodes(nodes[-1], record)):
            nodes.pop()  # casts of the parameter, and a gather between nodes, serve all its gathers
        if not nodes or not record.get("stored") or record.get("gather") == "once":
            return ()
        return tuple(reversed(nodes))

    def _gathered(self, chain: Chain, node: Node, index: int) -> Value:
        """The result of the backward's chain for the same module, which is made to stand before `node`."""
        key = _key(chain)
        if key not in self.chains:
            self.chains[key] = self._copied(chain, node)
            self._positions[self.chains[key]] = index
        elif self._positions[self.chains[key]] > index:
            for each in self._chain(self.chains[key]):
                each.op.operation.move_before(node.op.operation)
            self._positions[self.chains[key]] = index
        return self.chains[key]

    def _copied(self, chain: Chain, node: Node) -> Value:
        values = {chain[0].operands[0]: chain[0].operands[0]}
        with context(), mlir.InsertionPoint(node.op):
            for each in chain:
                copy_node(each, values, to_location(replace(each.origin, backward=True)))
                if use_of(each.op) is not None:
                    set_use(values[each.values[0]].owner, self._uses)
        self._uses += 1
        return values[chain[-1].values[0]]


def _key(chain: Sequence[Node]) -> object:
    """What is gathered how, and for which module."""
    steps = tuple((node.name, str(node.values[0].type)) for node in chain)
    return (chain[0].operands[0], steps, chain[0].origin.module_path)
