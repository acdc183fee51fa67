"""Give functions of folded layers the argument types of their calls, after main's own arguments have changed theirs."""

from __future__ import annotations

from ...ir.bindings import Operation, Type, Value, mlir
from ...ir.dialects.context import context
from ...ir.module import Module, build_call, build_function, entry, finish_function, refresh_type, terminator
from ..graph import Graph, copy_node


def pass_types_on(module: Module) -> None:
    """Give each function the types of its calls' operands.

    Layers whose calls have other types get copies, of forward and backward alike, so that the two stay a pair.
    """
    functions = module.functions()
    calls = Graph.of(functions["main"]).calls
    types = [tuple(value.type for value in call.operands) for call in calls]
    by_layer: dict[str, list[tuple[Type, ...]]] = {}
    for call, own in zip(calls, types, strict=True):
        by_layer.setdefault(call.origin.module_path, []).append(own)
    keys = {layer: tuple(of_calls) for layer, of_calls in by_layer.items()}
    copies: dict[str, dict[tuple[tuple[Type, ...], ...], str]] = {}
    for call, own in zip(calls, types, strict=True):
        name, key = str(call.callee), keys[call.origin.module_path]
        known = copies.setdefault(name, {})
        if key not in known:
            known[key] = name if not known else _copied(module, functions[name], _free(module, name))
            _retype(module.functions()[known[key]], own)
        if known[key] != name:
            with context(), mlir.InsertionPoint(call.op):
                operands = list(call.op.operands)
                made = build_call(known[key], operands, [v.type for v in call.values], call.op.location)
            for old, new in zip(call.values, made, strict=True):
                old.replace_all_uses_with(new)
            call.op.operation.erase()


def _free(module: Module, name: str) -> str:
    """A name for a copy of a function."""
    taken = module.functions()
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def _copied(module: Module, function: Operation, name: str) -> str:
    copy = build_function(module, name, [argument.type for argument in entry(function).arguments])
    values: dict[Value, Value] = dict(zip(entry(function).arguments, entry(copy).arguments, strict=True))
    with context(), mlir.InsertionPoint(entry(copy)):
        for node in Graph.of(function).nodes:
            copy_node(node, values)
    finish_function(copy, [values[value] for value in terminator(function).operands])
    return name


def _retype(function: Operation, types: tuple[Type, ...]) -> None:
    for argument, type_ in zip(entry(function).arguments, types, strict=True):
        argument.set_type(type_)
    refresh_type(function)
