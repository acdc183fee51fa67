"""Expand every nn operation into aten operations.

Before                                            After
  %y, %rstd = nn.rms_norm %x, %weight, 1e-6         %0 = aten.mul %x, %x
                                                    %1 = aten.mean %0, [-1], true
                                                    ...
                                                    %y = aten.mul %5, %weight

Each operation becomes the traced operations of its function in `idioms/reference.py`, without those that only unused
results need. The values that replace its results keep their types, placements included; values in between have types
without placements. Those that `keep` names stay, for `outline-idioms`.

Needs: local shapes; placements are ignored.   Keeps: values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from ...ir.bindings import Location, Type, Value
from ...ir.dialects.schemas import definitions
from ...ir.locations import of_idiom
from ...ir.module import Module
from ...ir.operations import Call, build
from ...ir.types import TensorType, absent, from_mlir, is_tensor, to_mlir
from ..base import Pass, Report
from ..rewriting import Applied, Outcome, Site, rewrite
from .idioms.reference import REFERENCE
from .idioms.tracing import Step, Trace, Traced, trace


@dataclass(frozen=True)
class LowerIdioms(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "lower-idioms"
    keep: str = ""
    """Idioms to leave as they are, such as "attention,attention_backward"."""

    def run(self, module: Module) -> Report:
        """Expand the nn operations of every function; equal ones are traced once."""
        kept = {f"nn.{name}" for name in self.keep.split(",")}
        expanded = [name for name in REFERENCE if name not in kept]
        return rewrite(module, self.name, dict.fromkeys(expanded, partial(_expand, traces={})))


def _expand(site: Site, traces: dict[Any, Trace]) -> Outcome:
    expand(site, REFERENCE[site.call.name], traces)
    return Applied(f"{site.call.name} written out")


def expand(site: Site, expansion: Callable[..., Any], traces: dict[Any, Trace]) -> None:
    """Replace an operation by the trace of `expansion` on its arguments; equal calls share an entry of `traces`."""
    needed = [r.type if is_tensor(r.type) and any(True for _ in r.uses) else None for r in site.op.results]
    site.replace(*emit(traced(site.call, expansion, traces), site.call.values(), needed, of_idiom(site.op)))


def traced(call: Call, expansion: Callable[..., Any], traces: dict[Any, Trace]) -> Trace:
    """The trace of `expansion` on the arguments of a call; equal calls share an entry of `traces`."""
    operands = call.values()
    types = tuple(_plain(from_mlir(v.type)) for v in operands)
    key = (call.name, types, repr(call.replace_values([_Hole()] * len(operands))))
    if key not in traces:
        traces[key] = _trace(call, types, expansion)
    return traces[key]


class _Hole:
    def __repr__(self) -> str:
        return "%"


def _plain(type_: TensorType) -> TensorType:
    return TensorType(type_.dtype, type_.shape)


def _trace(call: Call, types: Sequence[TensorType], expansion: Callable[..., Any]) -> Trace:
    def function(tensors: list[torch.Tensor]) -> Sequence[torch.Tensor | None]:
        args = call.replace_values(tensors).args
        absent_args = [None] * (len(definitions()[call.name].arguments) - len(args))
        results = expansion(*args, *absent_args)
        return results if isinstance(results, tuple) else (results,)

    return trace(function, types)


def emit(trace: Trace, operands: Sequence[Value], types: Sequence[Type | None], loc: Location) -> list[Value | None]:
    """Build the steps that the results with a type depend on; returns their values, None for the others."""
    final = {n: t for n, t in zip(trace.outputs, types, strict=True) if n is not None and t is not None}
    needed = set(final)
    for step in reversed(trace.steps):
        if needed.intersection(step.results):
            needed.update(_numbers(step))
    values = dict(enumerate(operands))
    for step in trace.steps:
        if needed.intersection(step.results):
            _build(step, values, final, loc)
    return [None if n is None else values.get(n) for n in trace.outputs]


def _numbers(argument: Any) -> list[int]:
    """The numbers of the tensors in an argument, or in all arguments of a step."""
    if isinstance(argument, Traced):
        return [argument.number]
    if isinstance(argument, Step):
        return _numbers((*argument.args, *argument.kwargs.values()))
    return [n for a in argument for n in _numbers(a)] if isinstance(argument, tuple) else []


def _build(step: Step, values: dict[int, Value], final: dict[int, Type], loc: Location) -> None:
    """Build one step; a result in `final` gets the type there, by a cast if the dtype differs."""

    def fill(argument: Any) -> Any:
        if isinstance(argument, Traced):
            return values[argument.number]
        return [fill(a) for a in argument] if isinstance(argument, tuple) else argument

    types = [_result_type(t, final.get(n)) for n, t in zip(step.results, step.types, strict=True)]
    call = Call(step.name, tuple(fill(a) for a in step.args), {k: fill(v) for k, v in step.kwargs.items()})
    is_list = definitions()[step.name].results == ("Tensor[]",)
    results = build(call, [types], loc)[0] if is_list else build(call, types, loc)
    for number, value in zip(step.results, results, strict=True):
        final_type = final.get(number, value.type)
        if value.type != final_type:
            dtype = from_mlir(final_type).dtype
            [value] = build(Call("aten._to_copy.default", (value,), {"dtype": dtype}), [final_type], loc)
        values[number] = value


def _result_type(traced: TensorType | None, final: Type | None) -> Type:
    """The type of a result: the final one if it differs from the traced one only in its placement."""
    if traced is None:
        return absent()
    if final is not None and _plain(from_mlir(final)) == traced:
        return final
    return to_mlir(traced)
