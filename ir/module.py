"""A module: the functions of a program at one level of the IR, with its mesh.

Module attributes: `comm.level` ("aten" or "comm") and `comm.mesh` (axes in declared order). Function arguments carry
`aten.argument`, a record that identifies the parameter, buffer, input or tangent; results of `main` likewise.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from ..diagnostics import Span, StrettoError
from .attributes import from_attribute, to_attribute
from .bindings import Attribute, Block, Operation, PassManager, Type, Value, mlir
from .dialects.context import context
from .dialects.packing import restore_packing
from .level import Level as Level
from .placement import Mesh

Record = dict[str, Any]
"""The metadata of an argument or result of `main`: name, kind, index, aliases, and for integer tensors their range.

The range [low, high) is that of the values at capture.
"""
_RecordKey = tuple[tuple[str, type, Any], ...]


_PLACE = re.compile(r'loc\("-":(?P<line>\d+):(?P<column>\d+)\)')
"""The location of a parse error; the bindings call the parsed text "-"."""


class Module:
    """An MLIR module of Stretto's dialects. Mutable: passes rewrite it in place."""

    def __init__(self, module: Any) -> None:
        self._module = module

    @staticmethod
    def empty(level: Level = Level.ATEN, mesh: Mesh = ()) -> Module:
        """A module without functions."""
        with context(), mlir.Location.unknown():
            empty = Module(mlir.Module.create())
        empty.level = level
        empty.mesh = mesh
        return empty

    def successor(self) -> Module:
        """An empty module with this one's attributes: level, mesh, and those that passes have set."""
        successor = Module.empty(self.level, self.mesh)
        for attribute in self.operation.attributes:
            successor.operation.attributes[attribute] = self.operation.attributes[attribute]
        return successor

    @staticmethod
    def parse(text: str, file: str = "<module>") -> Module:
        """Parse a module; E0504 at the position of the error."""
        try:
            with context(), mlir.Location.unknown():
                parsed = mlir.Module.parse(text)
                restore_packing(parsed.operation)
                return Module(parsed)
        except mlir.MLIRError as error:
            raise _parse_error(error, text, file) from None

    @property
    def operation(self) -> Operation:
        """The `builtin.module` operation."""
        return self._module.operation

    @property
    def body(self) -> Block:
        return self._module.body

    @property
    def level(self) -> Level:
        attributes = self.operation.attributes
        return Level(from_attribute(attributes["comm.level"])) if "comm.level" in attributes else Level.ATEN

    @level.setter
    def level(self, level: Level) -> None:
        self.operation.attributes["comm.level"] = to_attribute(str(level))

    @property
    def mesh(self) -> Mesh:
        attributes = self.operation.attributes
        if "comm.mesh" not in attributes:
            return ()
        return tuple((name, size) for name, size in from_attribute(attributes["comm.mesh"]))

    @mesh.setter
    def mesh(self, mesh: Mesh) -> None:
        self.operation.attributes["comm.mesh"] = to_attribute([[name, size] for name, size in mesh])

    def functions(self) -> dict[str, Operation]:
        """The functions by name, in order."""
        functions = (op for op in self.body.operations if op.operation.name == "func.func")
        return {name_of(op): op for op in functions}

    def text(self, *, locations: bool = True) -> str:
        """The module as text, which `parse` reads back."""
        return str(self.operation.get_asm(enable_debug_info=locations))

    def __str__(self) -> str:
        return self.text(locations=False)

    def verify(self) -> None:
        """Run MLIR's own verifier, which raises an internal error."""
        self.operation.verify()

    def become(self, other: Module) -> None:
        """Replace the contents by another module's; handles to old operations become invalid."""
        self._module = other._module

    def run_upstream(self, pipeline: str) -> None:
        """Run passes of upstream MLIR, such as "cse,canonicalize", and restore the packing of lists."""
        with context():
            PassManager.parse(f"builtin.module({pipeline})").run(self.operation)
            restore_packing(self.operation)


def upstream_problem(step: str) -> str:
    """MLIR's error for a pass with options, such as "canonicalize{top-down=maybe}"; empty if it is valid."""
    try:
        with context():
            PassManager.parse(f"builtin.module({step})")
    except ValueError as error:
        lines = [line for line in str(error).splitlines() if line]
        return lines[0].removeprefix("<Pass-Options-Parser>: ") if lines else "MLIR cannot parse it"
    return ""


def _parse_error(error: Any, text: str, file: str) -> StrettoError:
    diagnostics = error.error_diagnostics
    message = diagnostics[0].message if diagnostics else str(error)
    if "unregistered dialect" in message:  # MLIR advises an option that Stretto does not have
        message = "the operation belongs to no dialect that it knows"
    span = None
    place = _PLACE.fullmatch(str(diagnostics[0].location)) if diagnostics else None
    if place is not None:
        lines = text.splitlines()
        line = int(place["line"])
        span = Span(file, line, int(place["column"]), 1, lines[line - 1] if 0 < line <= len(lines) else "")
    return StrettoError("E0504", f"this is not a module of Stretto's IR: {message}", span=span)


def name_of(function: Operation) -> str:
    """A function's symbol name."""
    return str(mlir.StringAttr(function.attributes["sym_name"]).value)


def entry(function: Operation) -> Block:
    """A function's one block."""
    return function.regions[0].blocks[0]


def operations(function: Operation) -> Iterator[Operation]:
    """The operations of a function in order, with the terminator."""
    return iter(list(entry(function).operations))


def terminator(function: Operation) -> Operation:
    """The `func.return` of a function."""
    return entry(function).operations[-1]


def callee(op: Operation) -> str | None:
    """The name of the function that a `func.call` calls; None for another operation."""
    if op.operation.name != "func.call":
        return None
    return str(mlir.FlatSymbolRefAttr(op.attributes["callee"]).value)


def call_counts(module: Module) -> dict[str, int]:
    """By function, how many times `main` calls it; 1 for `main` itself, and for one that main does not call."""
    functions = module.functions()
    called = Counter(callee(op) for op in operations(functions["main"])) if "main" in functions else Counter()
    return {name: called[name] or 1 for name in functions}


def build_function(
    module: Module, name: str, arguments: Sequence[Type], *, records: Sequence[Record] | None = None
) -> Operation:
    """Append an empty function to the module; `finish_function` sets its results.

    A function with records is an entry function, and public.
    """
    ctx = context()
    with ctx, mlir.Location.unknown(), mlir.InsertionPoint(module.body):
        type_ = mlir.FunctionType.get(list(arguments), [], ctx)
        attributes = {
            "sym_name": to_attribute(name),
            "function_type": mlir.TypeAttr.get(type_, ctx),
        }
        if name != "main" and records is None:
            attributes["sym_visibility"] = to_attribute("private")
        function = mlir.Operation.create("func.func", attributes=attributes, regions=1)
        function.regions[0].blocks.append(*arguments, arg_locs=[mlir.Location.unknown()] * len(arguments))
        if records is not None:
            set_argument_records(function, records)
    return function


def finish_function(function: Operation, results: Sequence[Value], records: Sequence[Record] | None = None) -> None:
    """Append the `func.return` of `results`, and set the function's type."""
    ctx = context()
    block = entry(function)
    with ctx, mlir.Location.unknown(), mlir.InsertionPoint(block):
        mlir.Operation.create("func.return", operands=list(results))
    refresh_type(function)
    if records is not None:
        set_result_records(function, records)


def refresh_type(function: Operation) -> None:
    """Set the function's type from its block's arguments and its terminator's operands."""
    ctx = context()
    inputs = [a.type for a in entry(function).arguments]
    outputs = [v.type for v in terminator(function).operands]
    function.attributes["function_type"] = mlir.TypeAttr.get(mlir.FunctionType.get(inputs, outputs, ctx), ctx)


def _records(function: Operation, key: str, count: int) -> list[Record]:
    if key not in function.attributes:
        return [{} for _ in range(count)]
    return [dict(_record(each)) for each in mlir.ArrayAttr(function.attributes[key])]


@lru_cache(maxsize=65536)
def _record(attribute: Attribute) -> Record:
    """The record of an argument or result, decoded once: most passes ask for those of all parameters."""
    record: Record = from_attribute(attribute["aten.argument"]) if "aten.argument" in attribute else {}
    return record


def _set_records(function: Operation, key: str, records: Sequence[Record]) -> None:
    function.attributes[key] = mlir.ArrayAttr.get([_record_attribute(_hashable(r)) for r in records], context())


def _hashable(record: Record) -> _RecordKey:
    return tuple((key, type(v), tuple(v) if isinstance(v, list) else v) for key, v in record.items())


@lru_cache(maxsize=65536)
def _record_attribute(record: _RecordKey) -> Attribute:
    fields = {key: list(value) if kind is list else value for key, kind, value in record}
    return mlir.DictAttr.get({"aten.argument": to_attribute(fields)} if fields else {}, context())


def argument_records(function: Operation) -> list[Record]:
    """The `aten.argument` record of each argument, empty where there is none."""
    return _records(function, "arg_attrs", len(entry(function).arguments))


def set_argument_records(function: Operation, records: Sequence[Record]) -> None:
    """Set the `aten.argument` record of each argument."""
    _set_records(function, "arg_attrs", records)


def result_records(function: Operation) -> list[Record]:
    """The `aten.argument` record of each result, empty where there is none."""
    return _records(function, "res_attrs", len(list(terminator(function).operands)))


def set_result_records(function: Operation, records: Sequence[Record]) -> None:
    """Set the `aten.argument` record of each result."""
    _set_records(function, "res_attrs", records)


def build_call(name: str, operands: Sequence[Value], results: Sequence[Type], loc: Any) -> list[Value]:
    """Insert a `func.call` at the current insertion point; returns its results."""
    attributes = {"callee": mlir.FlatSymbolRefAttr.get(name, context())}
    op = mlir.Operation.create(
        "func.call", results=list(results), operands=list(operands), attributes=attributes, loc=loc
    )
    return list(op.results)
