"""The table of operations: one `OpDef` per torch schema (`aten`) and per schema of ours (`nn`, `comm`).

A torch operator "aten::_softmax" with overload "" is called "aten._softmax.default" everywhere in Stretto and
"aten.u_softmax_default" in MLIR text, where names consist of lower-case letters, digits and single underscores. A
custom op that the caller allows has a dialect of its own, because a dialect cannot grow:
"custom_mylib_twist_default.call".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache, cached_property

import torch

from ...ops.allowed import allowed_ops
from ...ops.grouped_mm import SCHEMAS as GROUPED_MM_SCHEMAS
from .comm import COMM_SCHEMAS
from .nn import NN_SCHEMAS


class Kind(StrEnum):
    """How one argument of a schema appears on an operation."""

    TENSOR = "tensor"
    OPTIONAL_TENSOR = "optional tensor"
    TENSORS = "tensors"
    """A list of tensors: one operand of tuple type."""
    OPTIONAL_TENSORS = "optional tensors"
    """A list with None entries: one operand of tuple type, and an attribute with the entries that are not None."""
    CONSTANT = "constant"
    """Anything else: an attribute; absent for None."""
    IGNORED = "ignored"
    """Device, layout and the like, which the IR does not represent."""


@dataclass(frozen=True)
class Argument:
    """One argument of an operation, in schema order."""

    name: str
    kind: Kind
    keyword: bool
    type: str
    """The schema's type text, such as "int" or "List[int]"; checked by the verifier."""
    required: bool = False
    """Whether the schema has no default and does not allow None."""
    has_default: bool = True
    """Whether a call may omit it. Without a default, None may still be allowed."""


@dataclass(frozen=True)
class OpDef:
    """One operation: its names in Stretto and in MLIR, its arguments and results."""

    name: str
    mlir_name: str
    arguments: tuple[Argument, ...]
    results: tuple[str, ...]
    """"Tensor" or "Tensor[]", for each result."""
    pure: bool
    result_names: tuple[str, ...] = ()
    """As the schema has them; "result" for one without."""

    @cached_property
    def operands(self) -> tuple[Argument, ...]:
        """The arguments that are SSA operands."""
        return tuple(a for a in self.arguments if a.kind not in (Kind.CONSTANT, Kind.IGNORED))

    @cached_property
    def constants(self) -> tuple[Argument, ...]:
        """The arguments that are attributes."""
        return tuple(a for a in self.arguments if a.kind is Kind.CONSTANT)

    @cached_property
    def positional(self) -> tuple[Argument, ...]:
        """The arguments that calls give without their names."""
        return tuple(a for a in self.arguments if not a.keyword)

    @cached_property
    def has_segments(self) -> bool:
        """Whether MLIR needs `operandSegmentSizes`, as an operand is optional."""
        return any(a.kind is Kind.OPTIONAL_TENSOR for a in self.operands)


_KINDS = {
    "Tensor": Kind.TENSOR,
    "Optional[Tensor]": Kind.OPTIONAL_TENSOR,
    "List[Tensor]": Kind.TENSORS,
    "List[Optional[Tensor]]": Kind.OPTIONAL_TENSORS,
}
_IGNORED = frozenset({"device", "layout", "pin_memory", "memory_format", "generator", "non_blocking"})
_UNSUPPORTED = ("Dict", "Tuple", "Storage", "__torch__", "List[t]", "Optional[List[Optional[Tensor]]]")


def mlir_name(name: str) -> str:
    """The MLIR name of "aten._softmax.default": "aten.u_softmax_default"."""
    dialect, name_in_dialect = name.split(".", 1)
    base, _, overload = name_in_dialect.partition(".")
    if base.startswith("_"):
        base = "u_" + base.lstrip("_")
    mangled = f"{base}_{overload}" if overload else base
    return f"{dialect}." + re.sub("_+", "_", mangled).strip("_").lower()


def _kind(argument: torch.Argument) -> Kind:
    if argument.name in _IGNORED:
        return Kind.IGNORED
    return _KINDS.get(str(argument.type), Kind.CONSTANT)


def _is_required(argument: torch.Argument) -> bool:
    return not argument.has_default_value() and not str(argument.type).startswith("Optional[")


def _define(schema: torch.FunctionSchema, name: str, pure: bool) -> OpDef:
    arguments = tuple(
        Argument(a.name, _kind(a), bool(a.kwarg_only), str(a.type), _is_required(a), bool(a.has_default_value()))
        for a in schema.arguments
    )
    results = tuple("Tensor[]" if "List" in str(r.type) else "Tensor" for r in schema.returns)
    return OpDef(
        name, mlir_name(name), arguments, results, pure, tuple(str(r.name or "result") for r in schema.returns)
    )


def _is_functional(schema: torch.FunctionSchema) -> bool:
    texts = [str(a.type) for a in (*schema.arguments, *schema.returns)]
    returns = [str(r.type) for r in schema.returns]
    return (
        not schema.is_mutable
        and bool(returns)
        and all(r in ("Tensor", "List[Tensor]") for r in returns)
        and not any(u in t for t in texts for u in _UNSUPPORTED)
    )


def _is_random(schema: torch.FunctionSchema) -> bool:
    overload = getattr(getattr(torch.ops.aten, schema.name[6:], None), schema.overload_name or "default", None)
    return overload is not None and torch.Tag.nondeterministic_seeded in overload.tags


def _aten_definitions() -> dict[str, OpDef]:
    table: dict[str, OpDef] = {}
    for schema in torch._C._jit_get_all_schemas():
        if schema.name.startswith("aten::") and _is_functional(schema):
            name = f"aten.{schema.name[6:]}.{schema.overload_name or 'default'}"
            table[name] = _define(schema, name, pure=True)
    return table


def definitions() -> dict[str, OpDef]:
    """Every operation by its Stretto name: about 1600 from torch, a few dozen of ours.

    Custom ops are among them as soon as the caller allows them.
    """
    return _definitions(len(allowed_ops()))


def by_mlir_name() -> dict[str, OpDef]:
    """Every operation by its MLIR name; mangled names must be unique."""
    return _by_mlir_name(len(allowed_ops()))


def custom_definitions() -> list[OpDef]:
    """The custom ops that the caller allows, in that order."""
    return [definitions()[name] for name in allowed_ops()]


@cache
def _definitions(custom_ops: int) -> dict[str, OpDef]:
    """The table while so many custom ops are allowed."""
    if custom_ops:
        custom = {name: _define_custom(name, op) for name, op in list(allowed_ops().items())[:custom_ops]}
        return _definitions(0) | custom
    table = _aten_definitions()
    for schemas in (NN_SCHEMAS, COMM_SCHEMAS):
        for text, pure in schemas:
            schema = torch._C.parse_schema(text)
            name = schema.name.replace("::", ".")
            table[name] = _define(schema, name, pure)
    for text in GROUPED_MM_SCHEMAS:
        schema = torch._C.parse_schema(f"stretto::{text}")
        name = f"{schema.name.replace('::', '.')}.default"
        table[name] = _define(schema, name, pure=True)
    return table


def _define_custom(name: str, op: torch._ops.OpOverload) -> OpDef:
    return replace(
        _define(op._schema, name, pure=True), mlir_name=f"custom_{re.sub('[^a-z0-9]+', '_', name.lower())}.call"
    )


@cache
def _by_mlir_name(custom_ops: int) -> dict[str, OpDef]:
    table: dict[str, OpDef] = {}
    for definition in _definitions(custom_ops).values():
        other = table.setdefault(definition.mlir_name, definition)
        if other is not definition:
            raise RuntimeError(f'"{other.name}" and "{definition.name}" both mangle to "{definition.mlir_name}"')
    return table
