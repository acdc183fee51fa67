"""Run a module's `main` op by op with torch on one device, to compare what passes made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from stretto.ir.bindings import Operation, Value, mlir
from stretto.ir.module import Module, callee, entry, operations
from stretto.ir.operations import is_packing, read, results_of
from stretto.passes.normalize.idioms.canonical import overload
from stretto.passes.normalize.idioms.reference import REFERENCE


def execute(module: Module, inputs: Sequence[torch.Tensor], function: str = "main") -> list[torch.Tensor]:
    """The results of a function of a module of level `aten`; nn operations run as their references."""
    body = module.functions()[function]
    values: dict[Value, Any] = dict(zip(entry(body).arguments, inputs, strict=True))
    for op in operations(body):
        if op.operation.name == "func.return":
            return [values[v] for v in op.operands]
        if not is_packing(op):
            _run(module, op, values)
    raise AssertionError("a function without a return")


def _run(module: Module, op: Operation, values: dict[Value, Any]) -> None:
    called = callee(op)
    if called is not None:
        results: Any = execute(module, [values[v] for v in op.operands], called)
    else:
        results = _call(op, values)
    results = list(results) if isinstance(results, (tuple, list)) else [results]
    wanted = [v for r in results_of(op) for v in (r if isinstance(r, list) else [r])]
    values.update(zip(wanted, results, strict=False))


def _call(op: Operation, values: dict[Value, Any]) -> Any:
    call = read(op)
    assert call is not None, op.operation.name

    def fill(argument: Any) -> Any:
        if isinstance(argument, mlir.Value):
            return values[argument]
        return [fill(a) for a in argument] if isinstance(argument, list) else argument

    args, kwargs = [fill(a) for a in call.args], {k: fill(v) for k, v in call.kwargs.items()}
    if call.name in REFERENCE:
        return _reference(call.name, args)
    return overload(call.name)(*args, **kwargs)


def _reference(name: str, args: list[Any]) -> Any:
    arguments = REFERENCE[name].__code__.co_argcount
    return REFERENCE[name](*args, *[None] * (arguments - len(args)))
