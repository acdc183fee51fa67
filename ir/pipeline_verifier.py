"""What a module whose ranks take turns must satisfy (`pipeline.py` says what it means).

Time is the innermost axis, and once stages have entries no collective is over it: a call says which microbatch it is
about. There is an entry for each coordinate on the axis of the stages, public, called by none; what entries take and
give has places in the whole program, without gaps, and one that several take (give) is the same for all. Tensors cross
between stages alone, along their axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .attributes import from_attribute
from .bindings import Operation, Value, mlir
from .collectives import TRANSFERS
from .module import Module, Record, argument_records, callee, entry, name_of, operations, result_records, terminator
from .pipelined_module import MICROBATCH, entry_names, microbatch_of, microbatches, pipeline_axis, space
from .types import from_mlir

Broken = tuple[str, Operation]
"""What is wrong, and the operation or function where."""
_LOCAL = ("comm.shard", "comm.offset", "comm.mask", "comm.random")
"""Operations whose axes may name time: they give what is one rank's own."""


def broken_rules(module: Module) -> Iterator[Broken]:
    """Every violation, of a module of any state."""
    mesh = module.mesh
    if MICROBATCH in dict(mesh) and mesh[-1][0] != MICROBATCH:
        yield f'"{MICROBATCH}" is the axis of time, and must be the last of the mesh', module.operation
    axis = pipeline_axis(module)
    if axis is None:
        yield from _calls_out_of_order(module)
    elif axis not in dict(space(mesh)):
        yield f'its stages are on "{axis}", which is no axis of ranks', module.operation
    else:
        yield from _in_order(module, axis)


def _calls_out_of_order(module: Module) -> Iterator[Broken]:
    for function in module.functions().values():
        for op in operations(function):
            if callee(op) is not None and microbatch_of(op) is not None:
                yield "a call is about one microbatch only where stages have entries of their own", op


def _in_order(module: Module, axis: str) -> Iterator[Broken]:
    functions = module.functions()
    names = entry_names(module)
    missing = [name for name in names if name not in functions]
    if missing:
        yield f'"{axis}" has {len(names)} coordinates, and the function "{missing[0]}" is not there', module.operation
        return
    if "main" in functions:
        yield 'each stage has an entry of its own, so that nothing begins at "main"', functions["main"]
    entries = [functions[name] for name in names]
    yield from _port_problems(entries)
    waiting = _of_one_microbatch(module)
    for function in functions.values():
        stage = names.index(name_of(function)) if name_of(function) in names else None
        if stage is not None and "sym_visibility" in function.attributes:
            yield "the entry of a stage must be public", function
        for op in operations(function):
            yield from _op_problems(op, axis, names, waiting, module, stage)


def _op_problems(
    op: Operation, axis: str, names: Sequence[str], waiting: set[str], module: Module, stage: int | None
) -> Iterator[Broken]:
    name, called = op.operation.name, callee(op)
    if called is not None:
        at, count = microbatch_of(op), microbatches(module.mesh)
        said = at if isinstance(at, tuple) else () if at is None else (at,)
        if called in names:
            yield f'"{called}" is the entry of a stage, and is called', op
        wrong = [each for each in said if not 0 <= each < count]
        if wrong:
            yield f"there are {count} microbatches, and {wrong[0]} is none of them", op
        if at is None and stage is not None and called in waiting:
            yield f'"{called}" depends on the microbatch, and the call names none', op
    elif name in TRANSFERS and "axis" in op.attributes and "peer" in op.attributes:
        along = from_attribute(op.attributes["axis"])
        if along != axis:
            yield f'tensors cross along "{axis}", not along "{along}"', op
        elif from_attribute(op.attributes["peer"]) == stage:
            yield f"stage {stage} would send to itself, or receive from itself", op
    elif name.startswith("comm.") and MICROBATCH in _axes(op):
        if name not in _LOCAL:
            yield "microbatches have no ranks once stages have entries, so that nothing is joined over them", op
        elif stage is not None:
            yield "it depends on the microbatch, and is in no call of one", op


def _port_problems(entries: Sequence[Operation]) -> Iterator[Broken]:
    for what, sides in (
        ("argument", [(argument_records(f), list(entry(f).arguments)) for f in entries]),
        ("result", [(result_records(f), list(terminator(f).operands)) for f in entries]),
    ):
        known: dict[int, tuple[Record, object]] = {}
        for function, (records, values) in zip(entries, sides, strict=True):
            yield from _places(function, what, records, values, known)
        gaps = [order for order in range(len(known)) if order not in known]
        if gaps:
            yield f"no stage has number {gaps[0]} of the program's {what}s", entries[0]


def _places(
    function: Operation,
    what: str,
    records: Sequence[Record],
    values: Sequence[Value],
    known: dict[int, tuple[Record, object]],
) -> Iterator[Broken]:
    """What is wrong with the places of one entry's arguments or results; `known` gets them."""
    seen: set[int] = set()
    for number, (record, value) in enumerate(zip(records, values, strict=True)):
        order = record.get("order")
        if type(order) is not int or order < 0 or order in seen:
            yield f'{what} {number} has no place of its own in the program ("order" is {order!r})', function
            continue
        seen.add(order)
        if known.setdefault(order, (record, value.type)) != (record, value.type):
            yield (
                f"{what} {number} is number {order} of the program, and other stages have another tensor there",
                function,
            )
        if isinstance(value.type, mlir.RankedTensorType) and MICROBATCH in dict(from_mlir(value.type).placement):
            yield f"{what} {number} is of one microbatch; stages take and give whole batches", function


def _of_one_microbatch(module: Module) -> set[str]:
    """The functions that want to know of which microbatch they are, and do not get it from calls inside of them."""
    functions = module.functions()
    found = {
        name
        for name, function in functions.items()
        if any(op.operation.name in _LOCAL and MICROBATCH in _axes(op) for op in operations(function))
    }
    callers: dict[str, list[str]] = {}
    for name, function in functions.items():
        for op in operations(function):
            called = callee(op)
            if called is not None and microbatch_of(op) is None:
                callers.setdefault(called, []).append(name)
    left = sorted(found)
    while left:
        new = [name for name in callers.get(left.pop(), []) if name not in found]
        found.update(new)
        left += new
    return found


def _axes(op: Operation) -> list[str]:
    """The axes that an operation of `comm` names; those of comm.random nest in lists with commas."""
    if "axes" not in op.attributes:
        return []
    return [axis for names in from_attribute(op.attributes["axes"]) for axis in str(names).split(",")]
