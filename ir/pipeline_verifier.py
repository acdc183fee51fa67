"""Verify pipelined modules (`pipelined_module.py` has their semantics).

The microbatch axis is the last one. In a module in order, no collective is over it: calls have a microbatch. Each
coordinate on the pipeline axis has an entry function, which is public and never called. The arguments (results) of
entry functions have an `order` in the whole program, without gaps; equal orders mean equal tensors. Sends and receives
are along the pipeline axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .attributes import from_attribute
from .bindings import Operation, Value, mlir
from .collectives import ALL_TO_ALL_ROWS, PERMUTE, TRANSFERS, synchronous
from .module import Module, Record, argument_records, callee, entry, name_of, operations, result_records, terminator
from .pipelined_module import MICROBATCH, entry_names, microbatch_of, microbatches, pipeline_axis, rank_axes
from .types import from_mlir

Violation = tuple[str, Operation]
"""A message, and the operation or function that it is about."""
_RANK_LOCAL = ("comm.shard", "comm.offset", "comm.mask", "comm.random")
"""Operations that may name the microbatch axis, as they only depend on the coordinate."""


def pipeline_problems(module: Module) -> Iterator[Violation]:
    """Every violation in a module of any of the three states."""
    mesh = module.mesh
    if MICROBATCH in dict(mesh) and mesh[-1][0] != MICROBATCH:
        yield f'the microbatch axis "{MICROBATCH}" must be the last axis of the mesh', module.operation
    axis = pipeline_axis(module)
    if axis is None:
        yield from _unscheduled_problems(module)
    elif axis not in dict(rank_axes(mesh)):
        yield f'the pipeline axis "{axis}" is not an axis of ranks', module.operation
    else:
        yield from _scheduled_problems(module, axis)


def _unscheduled_problems(module: Module) -> Iterator[Violation]:
    for function in module.functions().values():
        for op in operations(function):
            if callee(op) is not None and microbatch_of(op) is not None:
                yield "a call may have a microbatch only in a module with an entry function per stage", op


def _scheduled_problems(module: Module, axis: str) -> Iterator[Violation]:
    functions = module.functions()
    names = entry_names(module)
    missing = [name for name in names if name not in functions]
    if missing:
        yield f'"{axis}" has {len(names)} coordinates, but there is no entry function "{missing[0]}"', module.operation
        return
    if "main" in functions:
        yield 'a module with an entry function per stage may not have "main"', functions["main"]
    entries = [functions[name] for name in names]
    yield from _port_problems(entries)
    needs_microbatch = _microbatch_dependent(module)
    for function in functions.values():
        stage = names.index(name_of(function)) if name_of(function) in names else None
        if stage is not None and "sym_visibility" in function.attributes:
            yield "the entry function of a stage must be public", function
        for op in operations(function):
            yield from _op_problems(op, axis, names, needs_microbatch, module, stage)


def _op_problems(
    op: Operation, axis: str, names: Sequence[str], needs_microbatch: set[str], module: Module, stage: int | None
) -> Iterator[Violation]:
    name, called = op.operation.name, callee(op)
    if called is not None:
        microbatch, count = microbatch_of(op), microbatches(module.mesh)
        microbatches_of_call = (
            microbatch if isinstance(microbatch, tuple) else () if microbatch is None else (microbatch,)
        )
        if called in names:
            yield f'"{called}" is the entry function of a stage and may not be called', op
        wrong = [index for index in microbatches_of_call if not 0 <= index < count]
        if wrong:
            yield f"microbatch {wrong[0]} is out of range: there are {count} microbatches", op
        if microbatch is None and stage is not None and called in needs_microbatch:
            yield f'"{called}" depends on the microbatch, but the call has none', op
    elif name in TRANSFERS and "axis" in op.attributes and "peer" in op.attributes:
        along = from_attribute(op.attributes["axis"])
        if along != axis:
            yield f'tensors may be sent along the pipeline axis "{axis}", not along "{along}"', op
        elif from_attribute(op.attributes["peer"]) == stage:
            yield f"stage {stage} sends to or receives from itself", op
    elif synchronous(name) in (PERMUTE, ALL_TO_ALL_ROWS) and axis in _axes(op):
        kind = synchronous(name).removeprefix("comm.")
        yield f'stages on "{axis}" exchange messages; a collective "{kind}" may not cross them', op
    elif name.startswith("comm.") and MICROBATCH in _axes(op):
        if name not in _RANK_LOCAL:
            yield "no collective may be over the microbatch axis once stages have entry functions", op
        elif stage is not None:
            yield "it depends on the microbatch, but is outside of a call for a microbatch", op


def _port_problems(entries: Sequence[Operation]) -> Iterator[Violation]:
    for kind, sides in (
        ("argument", [(argument_records(f), list(entry(f).arguments)) for f in entries]),
        ("result", [(result_records(f), list(terminator(f).operands)) for f in entries]),
    ):
        known: dict[int, tuple[Record, object]] = {}
        for function, (records, values) in zip(entries, sides, strict=True):
            yield from _order_problems(function, kind, records, values, known)
        gaps = [order for order in range(len(known)) if order not in known]
        if gaps:
            yield f"no stage has {kind} {gaps[0]} of the program", entries[0]


def _order_problems(
    function: Operation,
    kind: str,
    records: Sequence[Record],
    values: Sequence[Value],
    known: dict[int, tuple[Record, object]],
) -> Iterator[Violation]:
    """Violations in the orders of one entry function's arguments or results; adds them to `known`."""
    seen: set[int] = set()
    for number, (record, value) in enumerate(zip(records, values, strict=True)):
        order = record.get("order")
        if type(order) is not int or order < 0 or order in seen:
            yield f'{kind} {number} needs an "order" of its own, not {order!r}', function
            continue
        seen.add(order)
        if known.setdefault(order, (record, value.type)) != (record, value.type):
            yield (
                f'{kind} {number} has "order" {order}, which is a different tensor in other stages',
                function,
            )
        if isinstance(value.type, mlir.RankedTensorType) and MICROBATCH in dict(from_mlir(value.type).placement):
            yield (
                f"{kind} {number} is a part of one microbatch, but entry functions take and return whole batches",
                function,
            )


def _microbatch_dependent(module: Module) -> set[str]:
    """The functions that depend on the microbatch of their caller."""
    functions = module.functions()
    dependent = {
        name
        for name, function in functions.items()
        if any(op.operation.name in _RANK_LOCAL and MICROBATCH in _axes(op) for op in operations(function))
    }
    callers: dict[str, list[str]] = {}
    for name, function in functions.items():
        for op in operations(function):
            called = callee(op)
            if called is not None and microbatch_of(op) is None:
                callers.setdefault(called, []).append(name)
    pending = sorted(dependent)
    while pending:
        new = [name for name in callers.get(pending.pop(), []) if name not in dependent]
        dependent.update(new)
        pending += new
    return dependent


def _axes(op: Operation) -> list[str]:
    """The axes of a `comm` operation; those of comm.random are comma-separated per dim."""
    if "axes" not in op.attributes:
        return []
    return [axis for names in from_attribute(op.attributes["axes"]) for axis in str(names).split(",")]
