"""For which sizes a model's graph stays the same: the conditions that torch relied on when it traced with symbols.

A branch on a size ("if tokens.shape[1] > 512"), a slice of a table that ends somewhere, sizes that must be equal:
each is a condition, and sizes that break one need a capture of their own.
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
    """Torch cannot trace this model with symbols in place of sizes, or relies on what cannot be said; says why."""


@dataclass(frozen=True)
class SizeGuards:
    """What the capture asks of the sizes."""

    ranges: Mapping[str, tuple[int, int | None]]
    conditions: tuple[str, ...]
    """As `runtime/program/sizes.py` reads them."""


def size_guards(traced: SymbolicGraphs, sizes: Mapping[str, CalledSize]) -> SizeGuards:
    """What the graphs of a trace ask of these sizes. Raises NotSymbolic."""
    return _Conditions(traced.inputs, traced.env, sizes).found()


class _Conditions:
    """What torch knows of its symbols, said of the user's names."""

    def __init__(self, inputs: Sequence[torch.Tensor], env: ShapeEnv, sizes: Mapping[str, CalledSize]) -> None:
        self._env = env
        self._names: dict[Any, str] = {}
        self._ranges: dict[str, tuple[int, int | None]] = {}
        self._conditions: dict[str, None] = {}
        for name, each in sizes.items():
            self._ranges[name] = each.range.low, each.range.high
            for at, dim in each.places:
                self._name(name, inputs[at].shape[dim])

    def found(self) -> SizeGuards:
        if self._env.deferred_runtime_asserts:
            raise NotSymbolic("the model relies on conditions on values, which are known only as it runs")
        for guard in self._env.guards:
            self._add(self._env.replace(guard.expr))
        for symbol, name in self._names.items():
            bounds = self._env.var_to_range.get(symbol)
            if bounds is not None:
                self._within(name, bounds.lower, bounds.upper)
        return SizeGuards(self._ranges, tuple(self._conditions))

    def _name(self, name: str, size: int | torch.SymInt) -> None:
        """`size` is what torch made of a dim called `name`: a symbol, an expression of other ones, or a number."""
        expression = size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)
        if isinstance(expression, sympy.Symbol) and self._names.setdefault(expression, name) == name:
            return
        self._conditions[f"{name} == {self._text(expression)}"] = None

    def _add(self, condition: Any) -> None:
        condition = condition.xreplace({symbol: _named(name) for symbol, name in self._names.items()})
        if condition is sympy.true or isinstance(condition, sympy.And):
            for each in condition.args:
                self._add(each)
            return
        relation = _RELATIONS.get(type(condition))
        if relation is None:
            raise NotSymbolic(f"the model relies on {condition}, which is no comparison of sizes")
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
        """An expression of sizes, with parentheses around all parts that have any."""
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
    """The one symbol of a name, so that sympy sees what is equal."""
    return sympy.Symbol(name, integer=True, positive=True)


_RELATIONS: dict[Any, str] = {
    sympy.Eq: "==",
    sympy.Ne: "!=",
    sympy.StrictLessThan: "<",
    sympy.LessThan: "<=",
    sympy.StrictGreaterThan: ">",
    sympy.GreaterThan: ">=",
}
