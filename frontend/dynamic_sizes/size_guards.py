"""Size guards: the conditions on named sizes under which a symbolic trace is valid.

They come from branches on a size ("if tokens.shape[1] > 512"), from slices of tables, and from sizes that must be
equal. Sizes that violate a guard need another capture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.functions import FloorDiv, Mod, PythonMod

from ..capture.joint import SymbolicGraphs
from .dynamic_dims import CalledSize


class NotSymbolic(Exception):
    """The model cannot be traced with symbolic sizes, or a guard cannot be expressed; the message tells why."""


@dataclass(frozen=True)
class SizeGuards:
    """The guards of a capture: the range of each named size, and conditions."""

    ranges: Mapping[str, tuple[int, int | None]]
    conditions: tuple[str, ...]
    """In the syntax of `runtime/program/sizes.py`."""


def size_guards(traced: SymbolicGraphs, sizes: Mapping[str, CalledSize]) -> SizeGuards:
    """The guards of a trace. Raises NotSymbolic."""
    return _Conditions(traced.inputs, traced.env, sizes).found()


class _Conditions:
    """Translates torch's guards from its symbols to the user's names."""

    def __init__(self, inputs: Sequence[torch.Tensor], env: ShapeEnv, sizes: Mapping[str, CalledSize]) -> None:
        self._env = env
        self._names: dict[Any, str] = {}
        self._ranges: dict[str, tuple[int, int | None]] = {}
        self._conditions: dict[str, None] = {}
        for name, size in sizes.items():
            self._ranges[name] = size.range.low, size.range.high
            for index, dim in size.places:
                self._name(name, inputs[index].shape[dim])

    def found(self) -> SizeGuards:
        if self._env.deferred_runtime_asserts:
            raise NotSymbolic("the model relies on conditions on tensor values")
        for guard in self._env.guards:
            self._add(self._env.replace(guard.expr))
        for symbol, name in self._names.items():
            bounds = self._env.var_to_range.get(symbol)
            if bounds is not None:
                self._within(name, bounds.lower, bounds.upper)
        return SizeGuards(self._ranges, tuple(self._conditions))

    def _name(self, name: str, size: int | torch.SymInt) -> None:
        """Relate `name` to torch's size of its dim: a symbol, an expression of symbols, or a number."""
        expression = size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)
        if isinstance(expression, sympy.Symbol) and self._names.setdefault(expression, name) == name:
            return
        self._conditions[f"{name} == {self._text(expression)}"] = None

    def _add(self, condition: Any) -> None:
        condition = condition.xreplace({symbol: _named(name) for symbol, name in self._names.items()})
        if condition is sympy.true or isinstance(condition, sympy.And):
            for operand in condition.args:
                self._add(operand)
            return
        relation = _RELATIONS.get(type(condition))
        if relation is None:
            raise NotSymbolic(f"the model relies on {condition}, which is not a comparison of sizes")
        text = f"{self._text(condition.args[0])} {relation} {self._text(condition.args[1])}"
        self._conditions[text] = None

    def _within(self, name: str, lower: Any, upper: Any) -> None:
        low, high = self._ranges[name]
        if isinstance(lower, sympy.Integer):
            low = max(low, int(lower))
        if isinstance(upper, sympy.Integer):
            high = int(upper) if high is None else min(high, int(upper))
        self._ranges[name] = low, high

    def _text(self, expression: Any) -> str:
        """An expression of sizes as text, fully parenthesised."""
        match expression:
            case sympy.Integer():
                return str(int(expression))
            case sympy.Symbol() if expression in self._names:
                return self._names[expression]
            case sympy.Symbol(name=name) if name in self._ranges:
                return str(name)
            case sympy.Add() | sympy.Mul():
                sign = " + " if isinstance(expression, sympy.Add) else " * "
                return f"({sign.join(map(self._text, expression.args))})"
            case sympy.Pow(args=(base, sympy.Integer() as power)) if 0 < power <= 3:
                return f"({' * '.join([self._text(base)] * int(power))})"
            case FloorDiv():
                return f"({self._text(expression.args[0])} // {self._text(expression.args[1])})"
            case Mod() | PythonMod():
                return f"({self._text(expression.args[0])} % {self._text(expression.args[1])})"
        raise NotSymbolic(f"the model relies on {expression}, which is not made of named sizes")


def _named(name: str) -> Any:
    """The symbol of a name; equal names give equal symbols."""
    return sympy.Symbol(name, integer=True, positive=True)


_RELATIONS: dict[Any, str] = {
    sympy.Eq: "==",
    sympy.Ne: "!=",
    sympy.StrictLessThan: "<",
    sympy.LessThan: "<=",
    sympy.StrictGreaterThan: ">",
    sympy.GreaterThan: ">=",
}
