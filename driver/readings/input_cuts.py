"""What the statements of a plan say of inputs: which are the batch, and which dims are sharded."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from .plan_text import INPUTS, PlanText, Sharding
from .stated_cuts import Cuts

Shapes = Mapping[str, tuple[int, ...]]
"""Of inputs, by name, in the order of the call."""


def batch_of(plan: PlanText, shapes: Shapes) -> tuple[str, ...]:
    """The inputs that are the batch: those that are named so; else the first one, and those with as many rows."""
    named = [each for each in plan.shardings(INPUTS) if each.patterns and each.role in ("batch", "whole")]
    roles = {
        name: next((each.role for each in reversed(named) if each.names(name)), "")
        for name, shape in shapes.items() if shape
    }  # fmt: skip
    if any(each.role == "batch" for each in named):
        return tuple(name for name, role in roles.items() if role == "batch")
    others = [name for name, role in roles.items() if role != "whole"]
    return tuple(name for name in others if shapes[name][0] == shapes[others[0]][0])


def cuts_of_inputs(plan: PlanText, shapes: Shapes, batch: Collection[str]) -> Mapping[str, Cuts]:
    """The cuts of each input: those of all statements that are about it; of one axis, the last."""
    sizes = dict(plan.mesh)
    cuts = {}
    for name, shape in shapes.items():
        dims: dict[str, int] = {}
        for statement in plan.shardings(INPUTS):
            dim = statement.number if statement.role == "dim" else 0
            if _is_about(statement, name, name in batch) and -len(shape) <= dim < len(shape):
                for axis in statement.axes:
                    dims.pop(axis, None)
                    dims[axis] = dim % len(shape)
        parts = {axis: dim for axis, dim in dims.items() if sizes[axis] > 1}
        cuts[name] = {dim: tuple(axis for axis in parts if parts[axis] == dim) for dim in {*parts.values()}}
    return cuts


def _is_about(statement: Sharding, name: str, is_batch: bool) -> bool:
    if not statement.patterns:
        return is_batch
    return statement.role != "whole" and statement.names(name) and (is_batch or statement.role == "dim")
