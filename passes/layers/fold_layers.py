"""Turn repeated layers into one function called many times, forward and backward, so that what follows costs once.

Before                                      After
  func @main(..) {                            func private @layers_forward(%x, %w) { %0 = aten.mm ..; return %0, .. }
    %0 = aten.mm %x, %w0      layers.0        func @main(..) {
    %1 = aten.mm %0, %w1      layers.1          %0:2 = call @layers_forward(%x, %w0)
    ..                                          %1:2 = call @layers_forward(%0#0, %w1)

The operations of one instance are those whose module path holds its number in a numbered container ("layers.3.mlp"),
forward and backward apart. Instances are the same when their operations, constants, types and dataflow are, value by
value; what later operations need of any of them is a result of the function. Different instances stay as they are.
An instance that could not run in one piece, because what it needs depends on what it gives, is left alone.

Needs: level `aten`.   Keeps: values.   Source: the repeated-subgraph folding of autoparallel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...ir.bindings import Operation, Value, mlir
from ...ir.dialects.context import context
from ...ir.layers import call_order, numbered_names, unnumbered
from ...ir.locations import Origin, to_location
from ...ir.module import (
    Level,
    Module,
    argument_records,
    build_call,
    build_function,
    entry,
    finish_function,
    result_records,
    terminator,
)
from ...ir.operations import is_packing
from ..base import Pass, Report
from ..graph import Graph, Node, copy_node
from .fold_remarks import folded, refusals, unlike
from .instances import Body, Instance, called_layer, equal_instances
from .unfold_layers import inline

Item = Node | Instance
"""A single operation of main, or a folded instance."""


@dataclass(frozen=True)
class FoldLayers(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "fold-layers"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})

    def run(self, module: Module) -> Report:
        bodies = _write_out_others(module)
        main = module.functions()["main"]
        nodes = Graph.of(main).nodes
        groups, alone = equal_instances(nodes, bodies)
        order, cyclic = _order(nodes, groups)
        refused: list[Instance] = []
        while cyclic:
            refused += cyclic
            groups = [[i for i in g if i not in refused] for g in groups]
            groups = [g for g in groups if len(g) > 1]
            order, cyclic = _order(nodes, groups)
        declined = (*refusals(refused), *unlike(alone, groups))
        if not groups:
            return Report(remarks=declined)
        new_module = module.successor()
        _Rebuild(main, new_module, groups).run(order)
        module.become(new_module)
        return Report(sum(len(g) for g in groups), (*folded(groups), *declined))


def _write_out_others(module: Module) -> dict[str, Body]:
    """Inline the functions that are called once, or compute no layers; returns what the others compute."""
    bodies: dict[str, Body] = {}
    while True:
        functions = module.functions()
        calls = Graph.of(functions["main"]).calls
        counts = Counter(call.callee for call in calls)
        several = {name: count for name, count in counts.items() if name is not None and count > 1}
        bodies = {name: body for name in several if (body := bodies.get(name) or Body.of(functions[name])) is not None}
        others = [call for call in calls if call.callee not in bodies or called_layer(call) is None]
        if not others:
            return bodies
        for call in others:
            inline(call.op, functions[str(call.callee)])


def _order(nodes: Sequence[Node], groups: Sequence[Sequence[Instance]]) -> tuple[list[Item], list[Instance]]:
    """The order of main when each instance is one call; and those that cannot run as one call."""
    owner = {node: instance for group in groups for instance in group for node in instance.own_nodes}
    positions: dict[Item, int] = {}
    maker: dict[Value, Item] = {}
    for position, node in enumerate(nodes):
        item = owner.get(node, node)
        positions[item] = position
        maker.update(dict.fromkeys(node.values, item))
    needs = {
        (maker[value], owner.get(node, node)): None
        for node in nodes
        for value in node.operands
        if value in maker and maker[value] is not owner.get(node, node)
    }
    items, cyclic = call_order(positions, needs)
    return items, [i for i in positions if i in cyclic and isinstance(i, Instance) and i.call is None]


class _Rebuild:
    """Builds main with calls in place of the instances, and the functions that they call."""

    def __init__(self, main: Operation, new_module: Module, groups: Sequence[Sequence[Instance]]) -> None:
        self.main = main
        self.new_module = new_module
        self.values: dict[Value, Value] = {}
        returned = set(terminator(main).operands)
        self.functions: dict[str, Operation] = {}
        self.exported: dict[Instance, list[int]] = {}
        for group in groups:
            self.exported.update(dict.fromkeys(group, _exported(group, returned)))
        self.names = _names(groups)
        for group in groups:
            self._function(group[0])

    def run(self, order: Sequence[Item]) -> None:
        """Build main."""
        types = [a.type for a in entry(self.main).arguments]
        new = build_function(self.new_module, "main", types, records=argument_records(self.main))
        self.values = dict(zip(entry(self.main).arguments, entry(new).arguments, strict=True))
        with context(), mlir.InsertionPoint(entry(new)):
            for node in order:
                if isinstance(node, Instance):
                    self._call(node)
                else:
                    copy_node(node, self.values)
        results = [self.values[v] for v in terminator(self.main).operands]
        finish_function(new, results, result_records(self.main))

    def _function(self, instance: Instance) -> None:
        new = build_function(self.new_module, self.names[instance], [v.type for v in instance.inputs])
        values = dict(zip(_inputs(instance), entry(new).arguments, strict=True))
        with context(), mlir.InsertionPoint(entry(new)):
            for node in instance.nodes:
                copy_node(node, values, to_location(unnumbered(node.origin)))
        self.functions[self.names[instance]] = new
        made = [values[v] for node in instance.nodes for v in node.values]
        finish_function(new, [made[k] for k in self.exported[instance]])

    def _call(self, instance: Instance) -> None:
        exported = [instance.values[k] for k in self.exported[instance]]
        name = self.names[instance]
        origin = Origin(instance.layer.path, backward=instance.layer.backward)
        operands = [self.values[v] for v in instance.inputs]
        types = [v.type for v in terminator(self.functions[name]).operands]
        results = build_call(name, operands, types, to_location(origin))
        self.values.update((old, new) for old, new in zip(exported, results, strict=True) if old is not None)


def _exported(group: Sequence[Instance], returned: set[Value]) -> list[int]:
    """The indices of inner values that have users outside in any instance of the group."""
    indices: set[int] = set()
    for instance in group:
        inside = set() if instance.call else {node.op.operation for node in instance.nodes}
        for number, value in enumerate(instance.values):
            if value is not None and number not in indices and (value in returned or not _used_only(value, inside)):
                indices.add(number)
    return sorted(indices)


def _used_only(value: Value, inside: set[Operation]) -> bool:
    """Whether all users of a value, through the packing of lists, are among `inside`."""
    for use in value.uses:
        user = use.owner
        if is_packing(user):
            if not all(_used_only(r, inside) for r in user.results):
                return False
        elif user.operation not in inside:
            return False
    return True


def _inputs(instance: Instance) -> list[Value]:
    """The values from outside as the instance's nodes use them: arguments, for those of a function."""
    inside = {value for node in instance.nodes for value in node.values}
    return list(dict.fromkeys(v for node in instance.nodes for v in node.operands if v not in inside))


def _names(groups: Sequence[Sequence[Instance]]) -> dict[Instance, str]:
    """A unique name for each group's function, from its container and direction."""
    names = numbered_names([group[0].layer.function_name for group in groups])
    return {instance: name for name, group in zip(names, groups, strict=True) for instance in group}
