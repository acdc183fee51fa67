"""Operations that communication must not move across: custom ops, whose code nobody knows, and calls that reach one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...ir.bindings import Operation
from ...ir.module import Module, callee, operations
from ...ir.operations import read
from ...ops.allowed import allowed_ops

IsBarrier = Callable[[Operation], bool]


def communication_barriers(module: Module) -> IsBarrier:
    """Whether an operation of the module is a custom op, or calls a function that reaches one."""
    if not allowed_ops():
        return lambda op: False
    functions = module.functions()
    reaching: dict[str, bool] = {}

    def is_barrier(op: Operation) -> bool:
        name = callee(op)
        if name is not None:
            return _reaches(name, functions, reaching, is_barrier)
        call = read(op)
        return call is not None and call.name in allowed_ops()

    return is_barrier


def _reaches(name: str, functions: Mapping[str, Operation], known: dict[str, bool], is_barrier: IsBarrier) -> bool:
    if name not in known:
        known[name] = any(is_barrier(op) for op in operations(functions[name]))
    return known[name]
