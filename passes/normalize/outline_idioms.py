"""Outline idioms that a target may compute in its own way: each becomes a call of a function with a kind.

Before                                             After
  func @main(%q, %k, %v) {                           func @main(%q, %k, %v) {
    %out, %lse = nn.attention %q, %k, %v, true         %0:2 = call @attention(%q, %k, %v)
    ..                                                 ..
                                                     func private @attention(%q, %k, %v) {kind = "attention"} {
                                                       %0 = aten.bmm ..

The body has operations that every target runs (`idioms/bodies.py`). It returns all results of the idiom, needed or
not, as an implementation of the kind does. Equal idioms of one source line share a function. Before this pass an
idiom is one operation, so other passes move, share, recompute and price it as one.

Needs: level `comm`, after all other passes, which would have to see through calls.   Keeps: values.
Source: the composite ops of StableHLO, which have a name and a decomposition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

from ...ir.bindings import Type, mlir
from ...ir.dialects.context import context
from ...ir.kinds import FunctionKind, kind_of_call, set_kind
from ...ir.locations import Origin, to_location
from ...ir.module import Level, Module, build_call, build_function, entry, finish_function
from ...ir.types import is_tensor
from ..base import Pass, Report
from ..rewriting import Applied, Outcome, Site, rewrite
from .idioms.bodies import BODIES
from .idioms.tracing import Trace
from .idioms.whole import WHOLE
from .lower_idioms import emit, traced


@dataclass(frozen=True)
class OutlineIdioms(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "outline-idioms"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    kinds: str = ",".join(WHOLE)
    """Idioms to outline, such as "attention,rms_norm"."""

    def run(self, module: Module) -> Report:
        """Outline every operation of these kinds."""
        named = [name for name in BODIES if name.removeprefix("nn.") in self.kinds.split(",")]
        return rewrite(module, self.name, dict.fromkeys(named, partial(_outline, outlined=_Outlined(module))))


def _outline(site: Site, outlined: _Outlined) -> Outcome:
    given = [is_tensor(result.type) for result in site.op.results]
    types = [result.type for result in site.op.results if is_tensor(result.type)]
    name = outlined.function(site, types)
    values = iter(build_call(name, site.call.values(), types, site.op.location))
    site.replace(*(next(values) if each else None for each in given))
    return Applied(f"{site.call.name} is a function of its own")


@dataclass
class _Outlined:
    """The functions that were made, by what they compute and where it stands."""

    module: Module
    _names: dict[object, str] = field(default_factory=dict)
    _traces: dict[Any, Trace] = field(default_factory=dict)

    def function(self, site: Site, results: Sequence[Type]) -> str:
        """The name of the function for an operation."""
        kind = _kind(site)
        origin = Origin("", site.origin.file, site.origin.line, site.origin.backward)
        types = tuple(value.type for value in site.call.values())
        key = (kind.name, kind.operands, repr(kind.attributes), types, tuple(results), origin)
        if key not in self._names:
            self._names[key] = self._made(site, kind, types, origin)
        return self._names[key]

    def _made(self, site: Site, kind: FunctionKind, types: Sequence[Type], origin: Origin) -> str:
        name = kind.name
        known, fresh, number = self.module.functions(), name, 1
        while fresh in known:
            fresh, number = f"{name}_{number}", number + 1
        function = build_function(self.module, fresh, types)
        arguments = list(entry(function).arguments)
        trace = traced(site.call, BODIES[site.call.name], self._traces)
        with context(), mlir.InsertionPoint(entry(function)):
            results = [result.type if is_tensor(result.type) else None for result in site.op.results]
            values = emit(trace, arguments, results, to_location(origin, name.removesuffix("_backward")))
        made = [value for value in values if value is not None]
        assert len(made) == len(kind.results), f"{site.call.name} computes all of its results"
        finish_function(function, made)
        set_kind(function, kind)
        return fresh


def _kind(site: Site) -> FunctionKind:
    """The kind of the function for an operation: without the results that it does not compute."""
    kind = kind_of_call(site.call)
    pairs = zip(kind.results, site.op.results, strict=True)
    return replace(kind, results=tuple(name for name, result in pairs if is_tensor(result.type)))
