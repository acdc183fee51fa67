"""Resolve a plan against activations: which dims of the inputs and of the residual stream each axis shards."""

from __future__ import annotations

from collections.abc import Mapping

from .error import PlanCode, PlanError
from .plan import Plan
from .shard import ShardActivations, ShardInputs, layout_dim
from .spelling import range_text, shape_text


def resolve_inputs(plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, int]]:
    """By input name, the dim that each axis shards, axes in mesh order.

    An input with too few dims for a statement is replicated on its axes. Raises PlanError E0115 for a statement that
    fits no input.
    """
    dims: dict[str, dict[str, int]] = {name: {} for name in shapes}
    for statement in plan.inputs:
        sharded_dims = {name: layout_dim(statement.layout, len(shape)) for name, shape in shapes.items()}
        if shapes and all(dim is None for dim in sharded_dims.values()):
            raise _fits_no_input(statement, shapes)
        for name, dim in sharded_dims.items():
            dims[name] |= {} if dim is None else dict.fromkeys(statement.axes, dim)
    return {name: _in_mesh_order(plan, by_axis) for name, by_axis in dims.items()}


def resolve_activations(plan: Plan, rank: int) -> dict[str, int]:
    """The dim of a residual stream of `rank` dims that each axis shards. Raises PlanError E0115 for a dim it lacks.

    Batch axes are not included: the residual stream takes those from the inputs.
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
