"""Copy into a function's backward what it reads of the forward and a statement says to compute again."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from ...costs.compute import flops
from ...ir.bindings import Value, mlir
from ...ir.dialects.context import context
from ...ir.locations import Origin, to_location
from ...ir.operations import flatten, is_packing, made_by, mark_recomputed
from ..graph import Graph, Node, build_like, copy_node
from ..layers.unfold_layers import numbered
from ..rewriting import erase_unused
from .kept import behind
from .regions import Regions, Unit


@dataclass
class Again:
    """The rewrite of one function that holds forward and backward.

    The copies of a value's operations stand before the first operation of the backward that reads it, so that the
    value lives no longer than it must.
    """

    graph: Graph
    regions: Regions
    layer: Origin = Origin()
    """The place of a call of the function, if it computes layers."""
    chosen: Container[int] | None = None
    """The numbers, among all values that the function makes, of those that may be dropped; None: all."""
    operations: int = 0
    """How many operations run again."""
    flops: float = 0.0
    """Their floating-point operations, on one rank."""
    _copies: dict[Value, Value] = field(default_factory=dict)
    _rebuilt: dict[Value, Value] = field(default_factory=dict)
    """The results of operations of the backward that take lists, which are built anew."""

    def run(self) -> bool:
        """Rewrite the function; whether there was anything to rewrite."""
        dropped = self._dropped
        for node in self.graph.nodes:
            if node in self._backward and any(value in dropped for value in node.operands):
                self._replace(node)
        erase_unused(self.graph.function)
        return bool(dropped)

    def costs(self) -> Iterator[tuple[int, Value, list[Node], list[Value]]]:
        """For each value that may be dropped: its number, what runs again for it alone, and what is kept for that."""
        for number, value in enumerate(made(self.graph)):
            unit = self._units.get(self.graph.maker[value])
            if unit is not None and self._is_read_inside(value, unit):
                cone = self._cone({value}, {value})
                needed = [v for node in cone for v in node.operands if not self._runs(node, v, {value})]
                yield number, value, cone, [v for v in dict.fromkeys(needed) if v not in self._readers]

    @cached_property
    def _backward(self) -> set[Node]:
        return behind(self.graph)

    @cached_property
    def _units(self) -> Mapping[Node, Unit]:
        forward = [node for node in self.graph.nodes if node not in self._backward]
        return self.regions.units(forward, self._path)

    @cached_property
    def _position(self) -> Mapping[Node, int]:
        return {node: index for index, node in enumerate(self.graph.nodes)}

    @cached_property
    def _readers(self) -> Mapping[Value, list[Node]]:
        """The operations of the backward that read each value."""
        users = self.graph.users.items()
        return {value: found for value, nodes in users if (found := [n for n in nodes if n in self._backward])}

    @cached_property
    def _dropped(self) -> set[Value]:
        """The values that only the backward of their own module reads, or that are of a kind; no copy needs them."""
        chosen = None if self.chosen is None else {v for i, v in enumerate(made(self.graph)) if i in self.chosen}
        dropped = {
            value
            for node, unit in self._units.items()
            for value in node.values
            if self._is_read_inside(value, unit) and (chosen is None or value in chosen)
        }
        while True:
            needed = self._kept_for(dropped)
            if needed.isdisjoint(dropped):
                return dropped
            dropped -= needed

    def _is_read_inside(self, value: Value, unit: Unit) -> bool:
        readers = self._readers.get(value, ())
        return bool(readers) and (
            not unit.path or all(self.regions.module_of(self._path(node)) == unit.path for node in readers)
        )

    def _kept_for(self, dropped: set[Value]) -> set[Value]:
        """What the operations that compute the dropped values again take from the forward."""
        return {v for node in self._cone(dropped, dropped) for v in node.operands if not self._runs(node, v, dropped)}

    def _cone(self, values: Iterable[Value], dropped: set[Value]) -> list[Node]:
        """The operations that compute values again, in order, without those that have been copied."""
        cone = {self.graph.maker[value] for value in values}
        waiting = list(cone)
        while waiting:
            node = waiting.pop()
            for operand in node.operands:
                if operand not in self._copies and self._runs(node, operand, dropped):
                    maker = self.graph.maker[operand]
                    if maker not in cone:
                        cone.add(maker)
                        waiting.append(maker)
        return sorted(cone, key=self._position.__getitem__)

    def _runs(self, node: Node, operand: Value, dropped: set[Value]) -> bool:
        """Whether an operand of a node that runs again is computed again too, rather than kept."""
        maker = self.graph.maker.get(operand)
        unit = None if maker is None else self._units.get(maker)
        if unit is None or (unit.path and unit != self._units[node]):
            return False
        return operand in dropped or operand not in self._readers

    def _path(self, node: Node) -> str:
        return numbered(node.origin, self.layer).module_path

    def _replace(self, node: Node) -> None:
        """Give a node of the backward copies in place of what is dropped."""
        values = [v for v in node.operands if v in self._dropped]
        with context(), mlir.InsertionPoint(node.op):
            for copied in self._cone([v for v in values if v not in self._copies], self._dropped):
                self._copy(copied)
            operands = [self._copies[v] if v in self._dropped else self._rebuilt.get(v, v) for v in node.operands]
            packs = [v.owner for v in node.op.operands if is_operation(v.owner) and is_packing(v.owner)]
            if not packs:
                for position, value in enumerate(operands):
                    node.op.operands[position] = value
                return
            types = [[v.type for v in r] if isinstance(r, list) else r.type for r in node.results]
            results = flatten(build_like(node, operands, types, node.op.location))
        for old, new in zip(node.values, results, strict=True):
            old.replace_all_uses_with(new)
            self._rebuilt[old] = new

    def _copy(self, node: Node) -> None:
        values: dict[Value, Value] = {v: self._copies.get(v, v) for v in node.operands}
        copy_node(node, values, to_location(replace(node.origin, backward=True)))
        for value in node.values:
            self._copies[value] = values[value]
            mark_recomputed(made_by(values[value]))
        assert node.call is not None
        self.operations += 1
        self.flops += flops(node.call, node.values)


def made(graph: Graph) -> Iterator[Value]:
    """The values that a function makes, in order."""
    return (value for node in graph.nodes for value in node.values)


def is_operation(owner: object) -> bool:
    """Whether what a value belongs to is an operation, not the block of a function's arguments."""
    return isinstance(owner, mlir.Operation | mlir.OpView)
