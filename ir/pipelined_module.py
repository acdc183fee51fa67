"""The semantics of pipelined modules: the microbatch axis, the pipeline axis, and entry functions.

A module passes through three states. The interpreter runs each of them:

1. *With a microbatch axis.* `comm.mesh` ends with the axis "microbatch". It has no ranks, but the module reads as if it
had: microbatches are shards of the batch, as data-parallel parts are, every operation runs once per microbatch, and a
collective over the axis reduces or gathers over microbatches. 2. *In segments.* The same, and every operation of `main`
that does not run once per step is in the function of a segment. 3. *In order* (`comm.pipeline` names the pipeline
axis). There is no `main`. Each coordinate on the pipeline axis has an entry function (`main_0`, `main_1`, ..), which
takes and returns what its ranks hold. No collective is over the microbatch axis. A `func.call` may have `microbatch =
3`: in all that it calls, the coordinate on the microbatch axis is 3. A function that interleaves two tasks is called
with `microbatch = [3, 1]`, and each operation in it has a `turn`: the index (0 or 1) of its microbatch. Entry functions
exchange tensors by `comm.send` and `comm.receive`.

The records of an entry function's arguments and results have an `order`: the position in the whole program.
"""

from __future__ import annotations

from .attributes import from_attribute, to_attribute
from .bindings import Operation
from .module import Module
from .placement import Mesh

MICROBATCH = "microbatch"
"""The name of the microbatch axis."""
_PIPELINE = "comm.pipeline"
_TURN = "turn"

Microbatch = int | tuple[int, ...]
"""A microbatch, or the interleaved microbatches of a call; `turn` is an index into them."""


def pipeline_axis(module: Module) -> str | None:
    """The pipeline axis of a module in order; None for any other module."""
    attributes = module.operation.attributes
    return str(from_attribute(attributes[_PIPELINE])) if _PIPELINE in attributes else None


def set_pipeline_axis(module: Module, axis: str) -> None:
    """Mark the module as in order, with an entry function per coordinate on `axis`."""
    module.operation.attributes[_PIPELINE] = to_attribute(axis)


def entry_name(coordinate: int) -> str:
    """The name of the entry function at a coordinate on the pipeline axis."""
    return f"main_{coordinate}"


def entry_names(module: Module) -> tuple[str, ...]:
    """The names of the entry functions: `main`, or one per coordinate on the pipeline axis."""
    axis = pipeline_axis(module)
    return (
        ("main",)
        if axis is None
        else tuple(entry_name(coordinate) for coordinate in range(dict(module.mesh).get(axis, 0)))
    )


def entries(module: Module) -> tuple[Operation, ...]:
    """The entry functions, where ranks begin."""
    functions = module.functions()
    return tuple(functions[name] for name in entry_names(module))


def rank_axes(mesh: Mesh) -> Mesh:
    """The axes with ranks: all but the microbatch axis."""
    return tuple((axis, size) for axis, size in mesh if axis != MICROBATCH)


def microbatches(mesh: Mesh) -> int:
    """The number of microbatches of a step; 1 without a microbatch axis."""
    return dict(mesh).get(MICROBATCH, 1)


def microbatch_of(call: Operation) -> Microbatch | None:
    """The `microbatch` of a call, one or several; None: the caller's, or every microbatch."""
    if MICROBATCH not in call.attributes:
        return None
    value = from_attribute(call.attributes[MICROBATCH])
    return tuple(value) if isinstance(value, list) else int(value)


def set_microbatch(call: Operation, microbatch: Microbatch) -> None:
    """Set the `microbatch` of a call, one or several."""
    call.attributes[MICROBATCH] = to_attribute(microbatch)


def turn_of(op: Operation) -> int | None:
    """The `turn` of an operation: the index of its microbatch among its function's; None if there is only one."""
    return int(from_attribute(op.attributes[_TURN])) if _TURN in op.attributes else None


def set_turn(op: Operation, turn: int) -> None:
    """Set the `turn` of an operation."""
    op.attributes[_TURN] = to_attribute(turn)


def select_microbatch(microbatch: Microbatch | None, turn: int | None) -> Microbatch | None:
    """The microbatch of an operation with `turn`, in a function that is called for `microbatch`."""
    return microbatch if turn is None or not isinstance(microbatch, tuple) else microbatch[turn]
