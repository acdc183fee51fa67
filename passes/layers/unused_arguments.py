"""Drop arguments that a layer's function does not use, from it and from its calls."""

from __future__ import annotations

from ...ir.bindings import Operation, mlir
from ...ir.dialects.context import context
from ...ir.module import Module, build_call, callee, entry, operations, refresh_type


def drop_unused_arguments(module: Module) -> None:
    """Drop them from all functions but main."""
    functions = module.functions()
    calls: dict[str, list[Operation]] = {}
    for function in functions.values():
        for op in operations(function):
            name = callee(op)
            if name is not None:
                calls.setdefault(name, []).append(op)
    for name, own in calls.items():
        block = entry(functions[name])
        unused = [i for i, argument in enumerate(block.arguments) if next(iter(argument.uses), None) is None]
        if not unused:
            continue
        for index in reversed(unused):
            block.erase_argument(index)
        refresh_type(functions[name])
        for call in own:
            operands = [value for i, value in enumerate(call.operands) if i not in unused]
            with context(), mlir.InsertionPoint(call):
                made = build_call(name, operands, [result.type for result in call.results], call.location)
            for old, new in zip(call.results, made, strict=True):
                old.replace_all_uses_with(new)
            call.operation.erase()
