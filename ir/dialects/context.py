"""The process's MLIR context, with the dialects generated from the schema table as IRDL.

IRDL unifies the types of all values of one variadic operand, so a list of tensors is one operand of tuple type
(packed by `builtin.unrealized_conversion_cast`) and an optional tensor is an optional operand.
"""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType
from typing import Any

from ..bindings import ext, irdl, mlir
from .schemas import Kind, OpDef, definitions

_DIALECTS = ("aten", "nn", "comm", "transformers")


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


def _register_module_stubs() -> None:
    """Register an empty Python module for each dialect, where the bindings look for operation classes.

    Without one, the bindings search the import path for every operation that Python sees (0.2 ms each). The wheel has
    no module for upstream's `async` either, whose values are our futures.
    """
    for dialect in (*_DIALECTS, "async"):
        name = f"torch_mlir.dialects.{dialect}"
        sys.modules.setdefault(name, ModuleType(name))


@cache
def context() -> Any:
    """The MLIR context with all dialects of Stretto, created once per process."""
    _register_module_stubs()
    ctx = mlir.Context()
    with ctx, mlir.Location.unknown():
        text = "\n".join(_dialect_text(d) for d in _DIALECTS)
        irdl.load_dialects(mlir.Module.parse(f"module {{\n{text}\n}}"))
        for definition in definitions().values():
            if definition.pure:
                ext.Pure.attach(definition.mlir_name)
    return ctx
