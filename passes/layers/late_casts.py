"""Move the casts at the end of results of folded layers behind their calls.

Before                                        After
  func private @layers_backward(..) {           func private @layers_backward(..) {
    %g = aten.mm %a, %b : .. -> t<8x8xbf16>       %g = aten.mm %a, %b : .. -> t<8x8xbf16>
    %h = aten._to_copy %g {dtype = f32}           return %g
    return %h                                   }
  }                                             %0 = call @layers_backward(..)
  %0 = call @layers_backward(..)                %1 = aten._to_copy %0 {dtype = f32}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ...ir.bindings import Operation, Value, mlir
from ...ir.dialects.context import context
from ...ir.locations import from_location, to_location
from ...ir.module import Module, build_call, callee, operations, refresh_type, terminator
from ...ir.operations import Call, build
from ...ir.types import from_mlir
from ..rewriting import erase_unused
from .unfold_layers import numbered

CAST = "aten._to_copy.default"
"""The op that changes a dtype."""


def return_before_casts(module: Module, results: Mapping[str, Sequence[int]], source: Callable[[Value], Value]) -> None:
    """Let functions return what `source` says that the given results are cast from; main casts them instead."""
    functions = module.functions()
    moved = {name: _moved(functions[name], indices, source) for name, indices in results.items()}
    for op in operations(functions["main"]):
        name = callee(op)
        if name is not None and moved.get(name):
            _cast_behind(op, functions[name], moved[name])
    for name, casts in moved.items():
        if casts:
            erase_unused(functions[name], {CAST})


def _moved(function: Operation, indices: Sequence[int], source: Callable[[Value], Value]) -> dict[int, Value]:
    """Change what a function returns; the casts that are moved, by the index of their result."""
    end = terminator(function)
    returned = list(end.operands)
    moved = {}
    for index in indices:
        before = source(returned[index])
        if before != returned[index] and not isinstance(before.owner, mlir.Block) and before not in list(end.operands):
            moved[index] = returned[index]
            end.operands[index] = before
    if moved:
        refresh_type(function)
    return moved


def _cast_behind(call: Operation, function: Operation, moved: Mapping[int, Value]) -> None:
    types = [value.type for value in terminator(function).operands]
    layer = from_location(call.location)
    with context(), mlir.InsertionPoint(call):
        results = build_call(str(callee(call)), list(call.operands), types, call.location)
        for index, old in enumerate(call.results):
            value = results[index]
            if index in moved:
                loc = to_location(numbered(from_location(moved[index].owner.location), layer))
                cast = Call(CAST, (value,), {"dtype": from_mlir(old.type).dtype})
                [value] = build(cast, [old.type], loc)
            old.replace_all_uses_with(value)
    call.operation.erase()
