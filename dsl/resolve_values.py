"""What a plan says of the values that a model is given and passes on: its inputs, and the residual stream."""

from __future__ import annotations

from collections.abc import Mapping

from .error import PlanCode, PlanError
from .plan import Plan
from .shard import ShardActivations, ShardInputs, layout_dim
from .spelling import range_text, shape_text


def resolve_inputs(plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, int]]:
    """For each input, by its name, the dim that each axis cuts, axes in mesh order.

    An input with too few dims for a statement stays whole on its axes. Raises PlanError E0115 where that leaves a
    statement with no input at all.
    """
    dims: dict[str, dict[str, int]] = {name: {} for name in shapes}
    for statement in plan.inputs:
        found = {name: layout_dim(statement.layout, len(shape)) for name, shape in shapes.items()}
        if shapes and all(dim is None for dim in found.values()):
            raise _fits_no_input(statement, shapes)
        for name, dim in found.items():
            dims[name] |= {} if dim is None else dict.fromkeys(statement.axes, dim)
    return {name: _in_mesh_order(plan, by_axis) for name, by_axis in dims.items()}


def resolve_activations(plan: Plan, rank: int) -> dict[str, int]:
    """The dim that each axis cuts of a residual stream of `rank` dims; raises PlanError E0115 where it has no such dim.

    Only what the statements about activations say: the batch keeps the axes of the inputs.
    """
    dims: dict[str, int] = {}
    for statement in plan.activations:
        dim = layout_dim(statement.layout, rank)
        if dim is None:
            raise _no_such_dim(statement, f"the activations have {rank} dims", range_text(rank))
        dims |= dict.fromkeys(statement.axes, dim)
    return _in_mesh_order(plan, dims)


def _in_mesh_order(plan: Plan, by_axis: Mapping[str, int]) -> dict[str, int]:
    return {axis: by_axis[axis] for axis in plan.mesh.names if axis in by_axis}


def _fits_no_input(statement: ShardInputs, shapes: Mapping[str, tuple[int, ...]]) -> PlanError:
    name, shape = max(shapes.items(), key=lambda item: len(item[1]))
    return _no_such_dim(statement, f'even "{name}" is {shape_text(shape)}', range_text(len(shape)))


def _no_such_dim(statement: ShardInputs | ShardActivations, why: str, expected: str) -> PlanError:
    return PlanError(
        PlanCode.DIM_OUT_OF_RANGE,
        f"the {statement.subject} have no {statement.layout}: {why}",
        span=statement.places.layout,
        expected=f"expected {expected}",
    )
