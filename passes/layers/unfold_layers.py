"""Inline the functions of folded layers where main calls them.

Before                                        After
  func private @layers_forward(%x, %w) {..}     func @main(..) {
  func @main(..) {                                %0 = aten.mm %x, %w0      layers.0
    %0:2 = call @layers_forward(%x, %w0)          %1 = aten.mm %0, %w1      layers.1
    %1:2 = call @layers_forward(%0#0, %w1)        ..

Needs: nothing.   Keeps: values.   The inverse of `fold-layers`, for debugging, and for cuts inside a layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ...ir.bindings import Operation, Value, mlir
from ...ir.dialects.context import context
from ...ir.locations import Origin, from_location, idiom_of, to_location
from ...ir.module import Module, callee, entry, operations, terminator
from ..base import Pass, Report
from ..counted_remarks import CountedRemarks
from ..graph import Graph, copy_node


@dataclass(frozen=True)
class UnfoldLayers(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "unfold-layers"

    def run(self, module: Module) -> Report:
        remarks = CountedRemarks(self.name)
        for op in operations(module.functions()["main"]):
            if callee(op) is not None:
                remarks.applied(f'"{callee(op)}" written out', from_location(op.location))
        return Report(unfold(module), remarks.remarks())


def unfold(module: Module) -> int:
    """Inline every call in main, transitively; returns how many there were."""
    count = 0
    functions = module.functions()
    main = functions["main"]
    while calls := [op for op in operations(main) if callee(op) is not None]:
        for call in calls:
            inline(call, functions[str(callee(call))])
        count += len(calls)
    for name, function in functions.items():
        if name != "main":
            function.erase()
    return count


def inline(call: Operation, function: Operation) -> None:
    """Replace a call by the operations of the function; these get the places of the layer that is called."""
    layer = from_location(call.location)
    values: dict[Value, Value] = dict(zip(entry(function).arguments, call.operands, strict=True))
    with context(), mlir.InsertionPoint(call):
        for node in Graph.of(function).nodes:
            copy_node(node, values, to_location(numbered(node.origin, layer), idiom_of(node.op.location)))
    for old, inner in zip(call.results, terminator(function).operands, strict=True):
        old.replace_all_uses_with(values[inner])
    call.operation.erase()


def numbered(origin: Origin, layer: Origin) -> Origin:
    """The place of an operation in one layer: "layers.*.mlp" in layer "layers.3" is "layers.3.mlp"."""
    container, _, number = layer.module_path.rpartition(".")
    path = origin.module_path
    if path == f"{container}.*" or path.startswith(f"{container}.*."):
        path = f"{container}.{number}{path.removeprefix(f'{container}.*')}"
    return replace(origin, module_path=path)
