"""Functions for regions: the members move into a function of their own, and a call stands for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ...ir.bindings import Block, Operation, Value, mlir
from ...ir.dialects.context import context
from ...ir.kinds import FunctionKind, set_kind
from ...ir.locations import Origin
from ...ir.module import Module, build_call, build_function, entry, finish_function, terminator
from ...ir.operations import is_packing
from ..graph import Graph, Node, copy_node
from .fusible import Role, role_of
from .grouping import is_ordered, order

KIND = "region"


@dataclass
class Region:
    """Operations that become a function of one module's function."""

    nodes: Sequence[Node]
    graph: Graph

    @cached_property
    def kept(self) -> list[Node]:
        """Views and constants that others read too: they also stay where they are."""
        inside, kept = set(self.nodes), set[Node]()
        results = {value for value, _ in self.graph.results}
        for node in reversed(self.nodes):
            users = [user for value in node.values for user in self.graph.users.get(value, ())]
            read = any(user not in inside or user in kept for user in users) or any(v in results for v in node.values)
            if role_of(node) is Role.FREE and read:
                kept.add(node)
        return [node for node in self.nodes if node in kept]

    @cached_property
    def outputs(self) -> list[Value]:
        """The values that are read outside."""
        inside, kept = set(self.nodes), set(self.kept)
        results = {value for value, _ in self.graph.results}
        return [
            value
            for node in self.nodes
            if role_of(node) is not Role.FREE
            for value in node.values
            if value in results or any(user not in inside or user in kept for user in self.graph.users.get(value, ()))
        ]

    @cached_property
    def body(self) -> list[Node]:
        """The members that the outputs need."""
        cone = self.graph.cone(self.outputs, set(self.nodes))
        return [node for node in self.nodes if node in cone]

    @cached_property
    def inputs(self) -> list[Value]:
        """The values that it reads, in the order of reading."""
        made = {value for node in self.body for value in node.values}
        return [v for v in dict.fromkeys(v for node in self.body for v in node.operands) if v not in made]

    @cached_property
    def origin(self) -> Origin:
        """The place of its first operation in the user's model."""
        return self.body[0].origin

    @cached_property
    def text(self) -> str:
        """Equal for regions that compute the same at the same place of the model."""
        numbers = {value: number for number, value in enumerate(self.inputs)}
        lines = [" ".join(str(value.type) for value in self.inputs)]
        for node in self.body:
            assert node.call is not None
            numbers.update((value, len(numbers) + place) for place, value in enumerate(node.values))
            call = node.call.replace_values([numbers[value] for value in node.operands])
            types = [str(value.type) for value in node.values]
            lines.append(f"{call.name} {call.args} {call.kwargs} {types} {node.op.location}")
        return "\n".join([*lines, str([numbers[value] for value in self.outputs])])


@dataclass
class Outlining:
    """The functions that a module gets for its regions; equal regions share one."""

    module: Module
    _names: dict[str, str] = field(default_factory=dict)

    def outline(self, graph: Graph, groups: Sequence[Sequence[Node]]) -> list[Region]:
        """Outline the regions of one function, and order its operations anew; returns those that were made."""
        regions = [region for nodes in groups if len((region := Region(nodes, graph)).body) > 1 and region.outputs]
        if not regions:
            return []
        member = {node: region for region in regions for node in region.nodes}
        kept = {node for region in regions for node in region.kept}
        items: list[Node | Region] = [node for node in graph.nodes if node not in member or node in kept]
        items += regions
        now: dict[Value, Value] = {}
        for place in _order(graph, items):
            item = items[place]
            if isinstance(item, Region):
                self._call(item, graph.function, now)
            else:
                _move_last(item, graph.function)
        for region in regions:
            assert region.origin is not None  # read before its operation is erased
            for node in reversed([node for node in region.nodes if node not in kept]):
                _erase(node)
        return regions

    def _call(self, region: Region, function: Operation, now: dict[Value, Value]) -> None:
        name = self._names.get(region.text)
        if name is None:
            name = self._names[region.text] = self._function(region)
        operands = [now.get(value, value) for value in region.inputs]
        with context(), mlir.InsertionPoint(terminator(function)):
            types = [value.type for value in region.outputs]
            results = build_call(name, operands, types, region.body[0].op.location)
        for old, new in zip(region.outputs, results, strict=True):
            now[old] = new
            old.replace_all_uses_with(new)

    def _function(self, region: Region) -> str:
        known, name, number = self.module.functions(), KIND, 1
        while name in known:
            name, number = f"{KIND}_{number}", number + 1
        function = build_function(self.module, name, [value.type for value in region.inputs])
        values = dict(zip(region.inputs, entry(function).arguments, strict=True))
        with context(), mlir.InsertionPoint(entry(function)):
            for node in region.body:
                copy_node(node, values)
        finish_function(function, [values[value] for value in region.outputs])
        operands = tuple(f"in{place}" for place in range(len(region.inputs)))
        set_kind(function, FunctionKind(KIND, operands, tuple(f"out{place}" for place in range(len(region.outputs)))))
        return name


def _order(graph: Graph, items: Sequence[Node | Region]) -> list[int]:
    """An order in which values come before their uses; collectives, messages and calls keep theirs."""
    makers: dict[Value, int] = {}
    for place, item in enumerate(items):
        made = item.outputs if isinstance(item, Region) else item.values
        makers.update(dict.fromkeys(made, place))
    places = {node: number for number, node in enumerate(graph.nodes)}
    first = [places[item.body[0] if isinstance(item, Region) else item] for item in items]
    ranked = sorted(range(len(items)), key=lambda place: (first[place], isinstance(items[place], Region)))
    rank = {place: number for number, place in enumerate(ranked)}
    needs: dict[int, set[int]] = {}
    ordered: int | None = None
    for number, place in enumerate(ranked):
        item = items[place]
        read = item.inputs if isinstance(item, Region) else item.operands
        needs[number] = {rank[makers[value]] for value in read if value in makers}
        if isinstance(item, Node) and is_ordered(item):
            needs[number] |= {ordered} if ordered is not None else set()
            ordered = number
    return [ranked[number] for number in order((n, frozenset(before)) for n, before in needs.items())]


def _move_last(node: Node, function: Operation) -> None:
    """Move an operation to the end of its function, with the packing of its lists."""
    end = terminator(function).operation
    for operand in node.op.operands:
        if _is_pack(operand.owner):
            operand.owner.move_before(end)
    node.op.operation.move_before(end)
    for result in node.op.results:
        for use in list(result.uses):
            if is_packing(use.owner):
                use.owner.operation.move_before(end)


def _erase(node: Node) -> None:
    for result in node.op.results:
        for use in list(result.uses):
            if is_packing(use.owner):
                use.owner.operation.erase()
    packs = [operand.owner for operand in node.op.operands if _is_pack(operand.owner)]
    node.op.operation.erase()
    for pack in packs:
        if not any(list(result.uses) for result in pack.results):
            pack.operation.erase()


def _is_pack(owner: Operation | Block) -> bool:
    """Whether a value's owner packs a list; the owner of an argument is a block."""
    return isinstance(owner, mlir.Operation | mlir.OpView) and is_packing(owner)
