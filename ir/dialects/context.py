"""The process's MLIR context, with the dialects generated from the schema table as IRDL.

IRDL unifies the types of all values of one variadic operand, so a list of tensors is one operand of tuple type
(packed by `builtin.unrealized_conversion_cast`) and an optional tensor is an optional operand.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

from ...ops.allowed import allowed_ops
from ..bindings import ext, irdl, mlir
from .schemas import Kind, OpDef, custom_definitions, definitions

_DIALECTS = ("aten", "nn", "comm", "stretto")


def _operation(definition: OpDef) -> str:
    lines = [f"irdl.operation @{definition.mlir_name.split('.', 1)[1]} {{"]
    operands = []
    for i, argument in enumerate(definition.operands):
        lines.append(f"%i{i} = irdl.any")
        optional = "optional " if argument.kind is Kind.OPTIONAL_TENSOR else ""
        operands.append(f"i{i}: {optional}%i{i}")
    if operands:
        lines.append(f"irdl.operands({', '.join(operands)})")
    results = []
    for i, _ in enumerate(definition.results):
        lines.append(f"%o{i} = irdl.any")
        results.append(f"o{i}: %o{i}")
    if results:
        lines.append(f"irdl.results({', '.join(results)})")
    lines.append("}")
    return "\n".join(lines)


def _dialect_text(dialect: str) -> str:
    body = "\n".join(_operation(d) for d in definitions().values() if d.mlir_name.startswith(f"{dialect}."))
    return f"irdl.dialect @{dialect} {{\n{body}\n}}"


def _register_module_stubs(dialects: Sequence[str]) -> None:
    """Register an empty Python module for each dialect, where the bindings look for operation classes.

    Without one, the bindings search the import path for every operation that Python sees (0.2 ms each).
    """
    for dialect in dialects:
        name = f"torch_mlir.dialects.{dialect}"
        sys.modules.setdefault(name, ModuleType(name))


def context() -> Any:
    """The MLIR context with all dialects of Stretto, created once per process, and those of the custom ops so far."""
    context = _context()
    if len(_LOADED) < len(allowed_ops()):
        _load_custom(context)
    return context


@cache
def _context() -> Any:
    # The wheel has no module for upstream's `async` either, whose values are our futures.
    _register_module_stubs((*_DIALECTS, "async"))
    ctx = mlir.Context()
    _load(ctx, _DIALECTS, [d for d in definitions().values() if d.mlir_name.partition(".")[0] in _DIALECTS])
    return ctx


_LOADED: set[str] = set()
"""The MLIR names of the custom ops that are loaded."""


def _load_custom(ctx: Any) -> None:
    """Load the dialects of the custom ops that are new."""
    for definition in custom_definitions():
        if definition.mlir_name not in _LOADED:
            dialect = definition.mlir_name.partition(".")[0]
            _register_module_stubs((dialect,))
            _load(ctx, (dialect,), [definition])
            _LOADED.add(definition.mlir_name)


def _load(ctx: Any, dialects: Sequence[str], loaded: Sequence[OpDef]) -> None:
    with ctx, mlir.Location.unknown():
        text = "\n".join(_dialect_text(dialect) for dialect in dialects)
        irdl.load_dialects(mlir.Module.parse(f"module {{\n{text}\n}}"))
        for definition in loaded:
            if definition.pure:
                ext.Pure.attach(definition.mlir_name)
