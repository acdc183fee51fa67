"""Set the dtype in which each parameter's gradient is reduced over ranks: cast to it before, and back after.

Before, reduce = fp32                                 After
  %g = aten.mm %a, %b : .. -> t<8x8xbf16>   layers.0    %g = aten.mm %a, %b : .. -> t<8x8xbf16>   layers.0
  %h = aten._to_copy %g {dtype = f32}       layers.0    %h = aten._to_copy %g {dtype = f32}
  return %h                                             return %h : {kind = "gradient", reduce = "float32"}

With reduce = bf16 the record has "bfloat16", `propagate-placements` reduces %g, and the cast comes after. Without the
option a gradient is reduced in its own dtype, as data-parallel training does. Only exact casts at the end of a gradient
are replaced. The new casts belong to no layer, so that a folded layer returns what it computes, and the reduction goes
between them.

Needs: level `aten`.   Keeps: values, up to the rounding of a shorter `reduce`.
Source: the reduce dtype of mixed-precision policies, as in PyTorch's FSDP.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ...dsl.precision import FloatFormat
from ...ir.attributes import dtype_of, format_name
from ...ir.bindings import Operation, Value, mlir
from ...ir.dialects.context import context
from ...ir.locations import Origin, from_location, to_location
from ...ir.module import (
    Level,
    Module,
    Record,
    argument_records,
    callee,
    entry,
    operations,
    result_records,
    set_result_records,
    terminator,
)
from ...ir.operations import Call, build
from ...ir.types import TensorType, from_mlir, to_mlir
from ..base import Pass, Report
from ..counted_remarks import CountedRemarks
from ..graph import made_at
from ..layers.late_casts import CAST, return_before_casts
from ..plan_effects import PRECISION_KEY
from ..rewriting import producer

_REDUCED_IN = {
    FloatFormat.FP64: "float64", FloatFormat.FP32: "float32", FloatFormat.BF16: "bfloat16", FloatFormat.FP16: "float16"
}  # fmt: skip
"""By the plan's `reduce`: the record of a gradient."""


@dataclass(frozen=True)
class CastGradients(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "cast-gradients"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})
    reduce: FloatFormat | None = None
    """The format in which gradients are reduced; none: each in its own."""
    stored_reduce: FloatFormat | None = None
    """That of parameters that are stored in parts; none: as all others."""

    def run(self, module: Module) -> Report:
        return_before_casts(module, _gradient_results(module), _computed)
        main = module.functions()["main"]
        end = terminator(main)
        records, remarks, recast, rounded = result_records(main), CountedRemarks(self.name), 0, False
        indices, stored = _parameter_gradients(main), _stored(main)
        for index in indices:
            value = end.operands[index]
            dtype = from_mlir(value.type).dtype
            reduce_dtype = dtype_of(self._format(records[index], stored)) or dtype
            origin = _origin(value, module)
            if _recast(main, end, index, reduce_dtype, origin):
                recast += 1
                remarks.applied(f"gradient reduced in {format_name(reduce_dtype)}", origin)
            rounded = rounded or reduce_dtype != dtype
            records[index] = {**records[index], "reduce": dtype_name(reduce_dtype)}
        set_result_records(main, records)
        return Report(recast, remarks.remarks(), self._effects(rounded) if indices else {})

    def broken_contract(self, module: Module) -> str:
        """Each gradient's record must have the dtype of the option; without it, the gradient's own."""
        main = module.functions()["main"]
        records, values, stored = result_records(main), terminator(main).operands, _stored(main)
        for index in _parameter_gradients(main):
            stated, stated_format = records[index].get("reduce"), self._format(records[index], stored)
            expected = _REDUCED_IN[stated_format] if stated_format else dtype_name(from_mlir(values[index].type).dtype)
            if stated != expected:
                return f'gradient "{records[index].get("name")}" is to be reduced in {stated}, not in {expected}'
        return ""

    def _format(self, record: Record, stored: Container[str]) -> FloatFormat | None:
        """The format in which the gradient of this record is reduced; none: its own."""
        return self.stored_reduce if self.stored_reduce is not None and record["name"] in stored else self.reduce

    def _effects(self, rounded: bool) -> dict[str, str]:
        if self.reduce is None:
            return {}
        return {PRECISION_KEY: "" if rounded else f"gradients are {self.reduce}, and reduced as such, without it"}


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in the record of a result."""
    return str(dtype).removeprefix("torch.")


def _parameter_gradients(main: Operation) -> list[int]:
    """The indices of results that are floating gradients of parameters."""
    owners = {record.get("name") for record in argument_records(main) if record.get("kind") == "parameter"}
    values = terminator(main).operands
    return [
        index
        for index, record in enumerate(result_records(main))
        if record.get("kind") == "gradient"
        and record.get("name") in owners
        and from_mlir(values[index].type).dtype.is_floating_point
    ]


def _stored(main: Operation) -> frozenset[str]:
    """The names of the parameters that are stored in parts."""
    return frozenset(record["name"] for record in argument_records(main) if record.get("stored"))


def _gradient_results(module: Module) -> dict[str, list[int]]:
    """By function, the results that are nothing but gradients of parameters in each of its calls."""
    main = module.functions()["main"]
    end = terminator(main)
    indices = set(_parameter_gradients(main))
    returned = list(end.operands)
    gradients = {returned[i] for i in indices} - {v for i, v in enumerate(returned) if i not in indices}
    found: dict[str, list[int]] = {}
    for op in operations(main):
        name = callee(op)
        if name is not None:
            kept = found.get(name, range(len(op.results)))
            found[name] = [i for i in kept if _only_returned(op.results[i], end) and op.results[i] in gradients]
    return found


def _only_returned(value: Value, end: Operation) -> bool:
    return all(use.owner.operation == end.operation for use in value.uses)


def _recast(main: Operation, end: Operation, index: int, reduce_dtype: torch.dtype, origin: Origin) -> bool:
    """Let `end`, the return, take a gradient through a cast to `reduce_dtype`; returns whether a cast was needed."""
    old = end.operands[index]
    computed = _computed(old)
    own = from_mlir(old.type).dtype
    if computed == old and reduce_dtype == own:
        return False
    with context(), _after(main, computed):
        new = _cast(_cast(computed, reduce_dtype, origin), own, origin)
    end.operands[index] = new
    _drop_casts(old, computed)
    return True


def _computed(value: Value) -> Value:
    """The value from which a gradient is cast, through exact casts."""
    call = producer(value)
    while call is not None and call.name == CAST:
        [operand] = call.values()
        before, after = from_mlir(operand.type).dtype, from_mlir(value.type).dtype
        if not before.is_floating_point or torch.promote_types(before, after) != after:
            break
        value, call = operand, producer(operand)
    return value


def _origin(value: Value, module: Module | None = None) -> Origin:
    """The place of what makes a value; with a module also inside the functions that it calls."""
    if module is not None and (loc := made_at(module, value)) is not None:
        return from_location(loc)
    return from_location(value.owner.location) if producer(value) is not None else Origin()


def _after(main: Operation, value: Value) -> mlir.InsertionPoint:
    """The insertion point right behind the maker of a value, found without a walk over the other operations."""
    if isinstance(value.owner, mlir.Block):
        return mlir.InsertionPoint.at_block_begin(entry(main))
    return mlir.InsertionPoint.after(value.owner)


def _cast(value: Value, dtype: torch.dtype, origin: Origin) -> Value:
    """`value` cast to a dtype, at a place in no layer."""
    type_ = from_mlir(value.type)
    if type_.dtype == dtype:
        return value
    loc = to_location(replace(origin, module_path=""))
    [cast] = build(Call(CAST, (value,), {"dtype": dtype}), [to_mlir(TensorType(dtype, type_.shape))], loc)
    return cast


def _drop_casts(value: Value, until: Value) -> None:
    """Erase the unused casts from `until` to `value`."""
    while value != until and not list(value.uses):
        [operand] = producer(value).values()  # type: ignore[union-attr]  # a cast
        value.owner.erase()
        value = operand
