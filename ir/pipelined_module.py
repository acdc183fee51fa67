"""A module whose ranks take turns: microbatches in time, stages on an axis of the mesh.

Three states, each with a meaning that the interpreter runs:

1. *Cut over time.* `comm.mesh` ends with an axis "microbatch", which is no axis of ranks but of time: microbatches are
   cut from the batch as data-parallel parts are. Every operation is still done "by each microbatch"; what a collective
   over this axis joins is what microbatches share. As if there were a rank for every microbatch.
2. *In segments.* The same; every operation of `main` that is not once per step stands in a function of one segment.
3. *In order* (`comm.pipeline` names the axis of the stages). There is no `main`: each coordinate on the axis of the
   stages has an entry function of its own (`main_0`, `main_1`, ..), which takes and gives what its ranks hold. No
   collective is over time any more. A `func.call` may say `microbatch = 3`: in all that it calls, the coordinate on
   the axis "microbatch" is 3. Where two tasks run interleaved in one function, its call says `microbatch = [3, 1]`, and
   each operation in it says whose `turn` it is, 0 or 1. Tensors cross between entries by `comm.send` and
   `comm.receive`.

The records of entries' arguments and results bear an `order`: their place among those of the whole program.
"""

from __future__ import annotations

from .attributes import from_attribute, to_attribute
from .bindings import Operation
from .module import Module
from .placement import Mesh

MICROBATCH = "microbatch"
"""The axis of time."""
_PIPELINE = "comm.pipeline"
_TURN = "turn"

Microbatch = int | tuple[int, ...]
"""A microbatch, or several in the order of their turns."""


def pipeline_axis(module: Module) -> str | None:
    """The axis that the stages lie on, of a module in order; None for any other."""
    attributes = module.operation.attributes
    return str(from_attribute(attributes[_PIPELINE])) if _PIPELINE in attributes else None


def set_pipeline_axis(module: Module, axis: str) -> None:
    """Say that the module has an entry function for each coordinate on `axis`."""
    module.operation.attributes[_PIPELINE] = to_attribute(axis)


def entry_name(coordinate: int) -> str:
    """The name of the entry function of the ranks at a coordinate on the axis of the stages."""
    return f"main_{coordinate}"


def entry_names(module: Module) -> tuple[str, ...]:
    """Where ranks begin: in `main`, or in one for each coordinate on the axis of the stages."""
    axis = pipeline_axis(module)
    return ("main",) if axis is None else tuple(entry_name(at) for at in range(dict(module.mesh).get(axis, 0)))


def entries(module: Module) -> tuple[Operation, ...]:
    """The functions where ranks begin."""
    functions = module.functions()
    return tuple(functions[name] for name in entry_names(module))


def space(mesh: Mesh) -> Mesh:
    """The axes that ranks stand on: all but time."""
    return tuple((axis, size) for axis, size in mesh if axis != MICROBATCH)


def microbatches(mesh: Mesh) -> int:
    """How many microbatches a step has; 1 where the batch is not cut over time."""
    return dict(mesh).get(MICROBATCH, 1)


def microbatch_of(call: Operation) -> Microbatch | None:
    """The microbatch that a call is about, or several; None where it is that of the caller, or every one's."""
    if MICROBATCH not in call.attributes:
        return None
    said = from_attribute(call.attributes[MICROBATCH])
    return tuple(said) if isinstance(said, list) else int(said)


def set_microbatch(call: Operation, microbatch: Microbatch) -> None:
    """Say which microbatch a call is about, or which ones."""
    call.attributes[MICROBATCH] = to_attribute(microbatch)


def turn_of(op: Operation) -> int | None:
    """Of a caller's several microbatches, which one an operation is about; None where there is but one."""
    return int(from_attribute(op.attributes[_TURN])) if _TURN in op.attributes else None


def set_turn(op: Operation, turn: int) -> None:
    """Say which of the caller's microbatches an operation is about."""
    op.attributes[_TURN] = to_attribute(turn)


def of_turn(microbatch: Microbatch | None, turn: int | None) -> Microbatch | None:
    """The microbatch of an operation in a function that was called for `microbatch`."""
    return microbatch if turn is None or not isinstance(microbatch, tuple) else microbatch[turn]
