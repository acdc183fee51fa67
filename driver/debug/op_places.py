"""The place of an operation: its line in the module's text, and its line in the model's source."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.bindings import Operation, mlir
from ...ir.interpreter.code import decoded
from ...ir.locations import Origin, from_location
from ...ir.module import Module, terminator
from ...ir.source_text import without_locations
from ...runtime.program.arguments import Json
from ..text.console import place_text

UNNAMED = "-"
"""The file name of MLIR text without a location."""


@dataclass(frozen=True)
class Place:
    """An operation, or the call or return that stands for one."""

    op: str
    function: str
    origin: Origin
    line: int = 0
    """1-based line in `Module.text()`; 0 where it is not known."""
    text: str = ""
    """That line, without its location."""

    def __str__(self) -> str:
        origin = self.origin
        parts = (place_text(origin.file, origin.line), origin.module_path, "backward" if origin.backward else "")
        where = ", ".join(part for part in parts if part)
        return f'"{self.op}"' + (f" ({where})" if where else f" in @{self.function}")

    def to_json(self) -> dict[str, Json]:
        origin = self.origin
        return {
            "op": self.op, "function": self.function, "line_of_module": self.line, "text": self.text,
            "module_path": origin.module_path, "file": origin.file, "line": origin.line, "backward": origin.backward,
        }  # fmt: skip


class Places:
    """The places of one module's operations, by function and step number; the number after the last is the return."""

    def __init__(self, module: Module) -> None:
        text = without_locations(module.text())
        parsed = Module.parse(text)
        bare_functions = parsed.functions()
        self._lines = text.splitlines()
        self._by_function = {
            name: [
                self._place(op, bare, name)
                for op, bare in zip(_with_return(function), _with_return(bare_functions[name]), strict=True)
            ]
            for name, function in module.functions().items()
        }

    def place(self, function: str, step: int) -> Place:
        """The place of one operation."""
        return self._by_function[function][step]

    def place_of_return(self, function: str) -> Place:
        """The place of a function's return."""
        return self._by_function[function][-1]

    def _place(self, op: Operation, bare: Operation, function: str) -> Place:
        location = bare.location
        line = int(location.start_line) if isinstance(location, mlir.FileLineColLoc) else 0
        text = self._lines[line - 1].strip() if line else ""
        origin = from_location(op.location)
        known = origin if origin.file != UNNAMED else Origin(origin.module_path)
        return Place(op.operation.name, function, known, line, text)


def _with_return(function: Operation) -> list[Operation]:
    return [*decoded(function), terminator(function)]
