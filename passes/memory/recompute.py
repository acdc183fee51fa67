"""Compute parts of the forward again in the backward, so that their results are not kept in between.

Before                                            After
  func private @layers_forward(%x, %w) {            func private @layers_forward(%x, %w) {
    %h = aten.mm %x, %w                               %h = aten.mm %x, %w
    %y = aten.gelu %h                                 %y = aten.gelu %h
    return %y, %h                                     return %y
  }                                                 }
  func private @layers_backward(%dy, %h, ..) {      func private @layers_backward(%dy, %x, %w, ..) {
    %dh = aten.gelu_backward %dy, %h                  %h = aten.mm %x, %w {recomputed}
                                                      %dh = aten.gelu_backward %dy, %h

A statement names modules or kinds of operations. Of a module, what its own backward reads of its inside is computed
again from what enters it; what leaves it stays as it is. Of a kind, no result is kept. Results of collectives are kept,
unless the statement says `collectives again`. Random numbers are functions of the RNG state: a mask is the same again.

Copies stand right before their first use, are located in the backward, and bear a mark, without which `cse` would merge
them with the forward where both are in one function. A stored parameter is gathered for the backward, not kept.
Layers of which a statement names a few get functions of their own.

Needs: level `comm`.   Keeps: values.   Source: Training Deep Nets with Sublinear Memory Cost (arXiv:1604.06174);
by kind of operation, Reducing Activation Recomputation in Large Transformer Models (arXiv:2205.05198).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from ...dsl.memory.recompute import Recompute as Statement
from ...dsl.memory.split import Split
from ...dsl.plan import Plan
from ...ir.attributes import to_attribute
from ...ir.bindings import Operation, mlir
from ...ir.dialects.context import context
from ...ir.locations import SPLIT_LOSS, from_location
from ...ir.module import Level, Module, callee, operations
from ..base import Pass, Remark, RemarkKind, Report
from ..graph import Graph, Node
from ..layers.joint_layers import paired
from ..layers.unfold_layers import inline, numbered
from ..option_values import Range
from ..plan_effects import key_of
from .fitting import fit
from .kept import behind, kept_bytes
from .regions import Regions, kind_of
from .rewriting import rewrite


@dataclass(frozen=True)
class Recompute(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "recompute"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    plan: Plan
    """The plan; its `recompute` statements are used."""
    margin: Annotated[int, Range(0, unit="bytes")] = 0
    """By how much the estimated peak is to stay below the memory of `recompute auto`."""

    def run(self, module: Module) -> Report:
        main = Graph.of(module.functions()["main"])
        if not any(record.get("kind") == "tangent" for _, record in main.arguments):
            return Report()
        count, remarks, effects = 0, list[Remark](), dict[str, str]()
        for index, statement in enumerate(self.plan.statements):
            if isinstance(statement, Split):
                again = Statement((), (SPLIT_LOSS,), places=statement.places)
                count += _recompute(module, Regions(again, frozenset()), remarks, effects, key_of(index))
            if isinstance(statement, Statement):
                forward = list(_forward(module))
                regions = Regions(statement, frozenset(path for _, path in forward))
                regions.check(kind_of(node) for node, _ in forward)
                _write_out_unpaired(module)
                if statement.is_automatic:
                    count += fit(module, regions, self.margin, remarks)
                else:
                    _specialise(module, regions)
                    count += _recompute(module, regions, remarks, effects, key_of(index))
        return Report(count, tuple(remarks), effects)


def _recompute(module: Module, regions: Regions, remarks: list[Remark], effects: dict[str, str], key: str) -> int:
    """Rewrite by one statement: how many operations run again."""
    before = kept_bytes(module)
    count, flops = rewrite(module, regions)
    after = kept_bytes(module)
    message = f"the backward computes {count} operations again ({flops:.3g} FLOPs on a rank) and keeps {after} bytes"
    message += f", {before - after} fewer than without"
    if count:
        remarks.append(Remark(Recompute.name, RemarkKind.APPLIED, message, span=regions.statement.span))
    saves = f"it saves nothing: the backward keeps {after} bytes with it, {before} without"
    effects[key] = "" if after < before else saves
    return count


def _forward(module: Module) -> Iterator[tuple[Node, str]]:
    """The forward's operations, with the module path of each; those of a layer's function once for each call."""
    functions = module.functions()
    main = Graph.of(functions["main"])
    backward = behind(main)
    for node in main.nodes:
        if node in backward:
            continue
        if node.callee is None:
            yield node, node.origin.module_path
            continue
        for inner in Graph.of(functions[node.callee]).nodes:
            yield inner, numbered(inner.origin, node.origin).module_path


def _write_out_unpaired(module: Module) -> None:
    """Inline the layers whose forward and backward are not one function each, and of which the backward reads."""
    functions = module.functions()
    graph = Graph.of(functions["main"])
    backward, pairs = behind(graph), paired(module)
    unpaired = {
        node.origin.module_path
        for node in graph.calls
        if node not in backward and node.callee not in pairs and node.callee not in pairs.values()
        if any(user in backward for value in node.values for user in graph.users.get(value, ()))
    }
    for node in graph.calls:
        if node.origin.module_path in unpaired:
            inline(node.op, functions[str(node.callee)])
    called = {callee(op) for op in operations(functions["main"])}
    for name, function in functions.items():
        if name != "main" and name not in called:
            function.erase()


def _specialise(module: Module, regions: Regions) -> None:
    """Give layers of which the statement names different modules functions of their own."""
    functions, pairs = module.functions(), paired(module)
    calls: dict[str, list[Operation]] = {}
    for op in operations(functions["main"]):
        if callee(op) is not None:
            calls.setdefault(str(callee(op)), []).append(op)
    for forward, backward in pairs.items():
        nodes = Graph.of(functions[forward]).nodes
        groups: dict[object, list[str]] = {}
        for op in calls[forward]:
            layer = from_location(op.location)
            named = tuple(regions.module_of(numbered(node.origin, layer).module_path) is not None for node in nodes)
            groups.setdefault(named, []).append(layer.module_path)
        for paths in list(groups.values())[1:]:
            for name in (forward, backward):
                _call_a_copy(
                    module, name, [op for op in calls[name] if from_location(op.location).module_path in paths]
                )


def _call_a_copy(module: Module, name: str, calls: list[Operation]) -> None:
    """Let some calls of a function call a copy of it."""
    functions, number = module.functions(), 1
    while f"{name}_{number}" in functions:
        number += 1
    with context():
        copy = functions[name].operation.clone(mlir.InsertionPoint(module.body))
        copy.attributes["sym_name"] = to_attribute(f"{name}_{number}")
    for op in calls:
        op.attributes["callee"] = mlir.FlatSymbolRefAttr.get(f"{name}_{number}", context())
