"""Say in which dtype each gradient of a parameter is added up over ranks, and cast it to that before, to its own after.

Before, reduce = fp32                                 After
  %g = aten.mm %a, %b : .. -> t<8x8xbf16>   layers.0    %g = aten.mm %a, %b : .. -> t<8x8xbf16>   layers.0
  %h = aten._to_copy %g {dtype = f32}       layers.0    %h = aten._to_copy %g {dtype = f32}
  return %h                                             return %h : {kind = "gradient", reduce = "float32"}

With reduce = bf16 the result says so, `propagate-placements` reduces %g, and the cast comes after. Without an option a
gradient is reduced in its own dtype, as data-parallel training does it, though a short float would cost fewer bytes.
Only casts at the end that lose nothing are taken apart. The casts made here belong to no layer, so that a folded layer
gives what it computes, and the reduction stands between them.

Needs: level `aten`, layers not folded.   Keeps: values, but for what a shorter `reduce` rounds.
Source: the reduce dtype of mixed-precision policies, as in PyTorch's FSDP.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ...dsl.precision import FloatFormat
from ...ir.attributes import dtype_of, format_name
from ...ir.bindings import Operation, Value, mlir
from ...ir.dialects.context import context
from ...ir.locations import Origin, from_location, to_location
from ...ir.module import Level, Module, argument_records, operations, result_records, set_result_records, terminator
from ...ir.operations import Call, build, flatten, results_of
from ...ir.types import TensorType, from_mlir, to_mlir
from ..base import Pass, Report
from ..counted_remarks import CountedRemarks
from ..plan_effects import PRECISION_KEY
from ..rewriting import producer

CAST = "aten._to_copy.default"
"""The op that changes a dtype."""


@dataclass(frozen=True)
class CastGradients(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "cast-gradients"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})
    reduce: FloatFormat | None = None
    """What gradients are added up in; none: each in its own format."""

    def run(self, module: Module) -> Report:
        main = module.functions()["main"]
        records, remarks, recast, rounded = result_records(main), CountedRemarks(self.name), 0, False
        places = _parameters_gradients(main)
        for at in places:
            value = terminator(main).operands[at]
            dtype = from_mlir(value.type).dtype
            wanted = dtype_of(self.reduce) or dtype
            origin = _origin(value)
            if _recast(main, at, wanted):
                recast += 1
                remarks.applied(f"gradient reduced in {format_name(wanted)}", origin)
            rounded = rounded or wanted != dtype
            records[at] = {**records[at], "reduce": dtype_name(wanted)}
        set_result_records(main, records)
        return Report(recast, remarks.remarks(), self._effects(rounded) if places else {})

    def _effects(self, rounded: bool) -> dict[str, str]:
        if self.reduce is None:
            return {}
        return {PRECISION_KEY: "" if rounded else f"gradients are {self.reduce}, and reduced as such, without it"}


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in the record of a result."""
    return str(dtype).removeprefix("torch.")


def _parameters_gradients(main: Operation) -> list[int]:
    """Which results are floating gradients of parameters, by number."""
    owners = {record.get("name") for record in argument_records(main) if record.get("kind") == "parameter"}
    values = terminator(main).operands
    return [
        at
        for at, record in enumerate(result_records(main))
        if record.get("kind") == "gradient"
        and record.get("name") in owners
        and from_mlir(values[at].type).dtype.is_floating_point
    ]


def _recast(main: Operation, at: int, wanted: torch.dtype) -> bool:
    """Return the gradient from what was computed, through `wanted`; whether anything had to be cast."""
    old = terminator(main).operands[at]
    computed = _computed(old)
    own = from_mlir(old.type).dtype
    if computed == old and wanted == own:
        return False
    with context(), _after(main, computed):
        new = _cast(_cast(computed, wanted, old), own, old)
    terminator(main).operands[at] = new
    _drop_casts(old, computed)
    return True


def _computed(value: Value) -> Value:
    """What a gradient is cast from, through casts that lose nothing."""
    call = producer(value)
    while call is not None and call.name == CAST:
        [operand] = call.values()
        before, after = from_mlir(operand.type).dtype, from_mlir(value.type).dtype
        if not before.is_floating_point or torch.promote_types(before, after) != after:
            break
        value, call = operand, producer(operand)
    return value


def _origin(value: Value) -> Origin:
    return from_location(value.owner.location) if producer(value) is not None else Origin()


def _after(main: Operation, value: Value) -> mlir.InsertionPoint:
    """The place right behind what makes a value."""
    ops = list(operations(main))
    made = [at for at, op in enumerate(ops) if value in flatten(results_of(op))]
    return mlir.InsertionPoint(ops[made[0] + 1] if made else ops[0])


def _cast(value: Value, dtype: torch.dtype, like: Value) -> Value:
    """`value` in a dtype, at the place of `like`, but in no layer."""
    type_ = from_mlir(value.type)
    if type_.dtype == dtype:
        return value
    loc = to_location(replace(_origin(like), module_path=""))
    [made] = build(Call(CAST, (value,), {"dtype": dtype}), [to_mlir(TensorType(dtype, type_.shape))], loc)
    return made


def _drop_casts(value: Value, until: Value) -> None:
    """Erase the casts from `until` to `value` that nobody uses."""
    while value != until and not list(value.uses):
        [operand] = producer(value).values()  # type: ignore[union-attr]  # a cast
        value.owner.erase()
        value = operand
