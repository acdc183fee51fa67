"""What the source of a pass of ours says, read without importing it: importing it would load torch and MLIR.

Only the names in the annotations and defaults of options are looked up: each is imported from where the source imports
it, such as `FloatFormat` from `dsl/precision.py`.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from dataclasses import Field, dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...ir.level import Level
from ...passes.option_values import option_name, print_value
from ...passes.registry import place_of
from .pass_options import PassOption, default_text, field_docstrings, type_text


@dataclass(frozen=True)
class PassSource:
    """The source of a pass of ours."""

    module: str
    class_name: str
    file: str

    @staticmethod
    def of(name: str) -> PassSource:
        """The source of a pass in the registry's table."""
        module, _, class_name = place_of(name).partition(":")
        spec = find_spec(module)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"no source of {module}", name=module)
        return PassSource(module, class_name, spec.origin)

    @property
    def text(self) -> str:
        """The docstring of the module."""
        return ast.get_docstring(self._tree) or ""

    @property
    def options(self) -> tuple[PassOption, ...]:
        """The options, as `options_of` finds them in the class."""
        texts = field_docstrings(self._definition)
        return tuple(
            PassOption(option_name(name), type_text(self._value(type_)), self._default(value), texts.get(name, ""))
            for name, type_, value in self._annotated()
            if not _is_class_variable(type_)
        )

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels of the modules that the pass takes, sorted."""
        given = next((value for name, _, value in self._annotated() if name == "levels"), None)
        return tuple(sorted(Level if given is None else self._value(given)))

    @cached_property
    def _tree(self) -> ast.Module:
        return ast.parse(Path(self.file).read_text(encoding="utf-8"))

    @cached_property
    def _definition(self) -> ast.ClassDef:
        [found] = [node for node in self._tree.body if isinstance(node, ast.ClassDef) and node.name == self.class_name]
        return found

    def _annotated(self) -> Iterator[tuple[str, ast.expr, ast.expr | None]]:
        """Name, annotation and value of what the class annotates."""
        for node in self._definition.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id, node.annotation, node.value

    def _default(self, value: ast.expr | None) -> str | None:
        if value is None:
            return None
        default = self._value(value)
        return default_text(default) if isinstance(default, Field) else print_value(default)

    def _value(self, expression: ast.expr) -> Any:
        """What an expression of the source stands for."""
        names = {node.id for node in ast.walk(expression) if isinstance(node, ast.Name)}
        known = {name: self._named(name) for name in names if not hasattr(builtins, name)}
        return eval(compile(ast.Expression(expression), self.file, "eval"), known)

    def _named(self, name: str) -> object:
        """What the module knows under a name: imported from where it imports it, else from the module itself."""
        if name == Level.__name__:  # which passes import from `ir/module.py`, with all of MLIR
            return Level
        for node in self._tree.body:
            if isinstance(node, ast.ImportFrom) and name in {each.asname or each.name for each in node.names}:
                home = "." * node.level + (node.module or "")
                return getattr(import_module(home, self.module.rpartition(".")[0]), name)
        return getattr(import_module(self.module), name)


def _is_class_variable(annotation: ast.expr) -> bool:
    return isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "ClassVar"
