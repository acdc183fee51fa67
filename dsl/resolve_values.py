"""Resolve a plan against activations: what the batch is, and which dims of inputs and residual stream axes shard."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..diagnostics import Span
from . import globs
from .error import PlanCode, PlanError
from .plan import Plan
from .shard import Role, ShardActivations, ShardBuffers, ShardInputs, layout_dim
from .spelling import listed, range_text, shape_text


def batch_inputs(plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """The inputs whose dim 0 is the batch, in order: those that statements name as the batch.

    Where none does: the first input with dims that no statement makes whole, and all others with as many rows.
    """
    roles = {name: stated_role(plan, name) for name, shape in shapes.items() if shape}
    if names_batch(plan):
        return tuple(name for name, role in roles.items() if role is Role.BATCH)
    candidates = [name for name, role in roles.items() if role is not Role.WHOLE]
    return tuple(name for name in candidates if shapes[name][0] == shapes[candidates[0]][0])


def names_batch(plan: Plan) -> bool:
    """Whether a statement names the inputs that are the batch, so that all others are whole."""
    return any(statement.patterns and statement.layout is Role.BATCH for statement in plan.inputs)


def stated_role(plan: Plan, name: str) -> Role | None:
    """The role of an input by the last statement that names it and gives one: the batch or whole; None: none does."""
    roles = [s.layout for s in plan.inputs if isinstance(s.layout, Role) and s.covers(name)]
    return roles[-1] if roles else None


def states_role(plan: Plan, name: str) -> bool:
    """Whether the plan says if an input is the batch, so that its number of rows decides nothing."""
    return names_batch(plan) or stated_role(plan, name) is not None


def resolve_inputs(
    plan: Plan, shapes: Mapping[str, tuple[int, ...]], batch: Collection[str]
) -> dict[str, dict[str, int]]:
    """By input name, the dim that each axis shards; `batch` are the inputs that are the batch.

    Axes that shard the same dim nest in the order of the statements, the outermost first.
    A statement without names is about the batch. An input with too few dims for a statement is replicated on its axes.
    Raises PlanError E0115 for a statement that fits none of its inputs.
    """
    dims: dict[str, dict[str, int]] = {name: {} for name in shapes}
    for statement in plan.inputs:
        subjects = {name: shape for name, shape in shapes.items() if _is_about(statement, name, batch)}
        sharded_dims = {name: layout_dim(statement.layout, len(shape)) for name, shape in subjects.items()}
        if subjects and statement.axes and all(dim is None for dim in sharded_dims.values()):
            raise _fits_no_input(statement, subjects)
        for name, dim in sharded_dims.items():
            if dim is not None:
                others = {axis: other for axis, other in dims[name].items() if axis not in statement.axes}
                dims[name] = {**others, **dict.fromkeys(statement.axes, dim)}
    return dims


def _is_about(statement: ShardInputs, name: str, batch: Collection[str]) -> bool:
    if not statement.patterns:
        return name in batch
    return statement.covers(name) and (name in batch or statement.layout is not Role.BATCH)


def resolve_activations(plan: Plan, rank: int) -> dict[str, int]:
    """The dim of a residual stream of `rank` dims that each axis shards. Raises PlanError E0115 for a dim it lacks.

    Axes that shard the same dim nest in the order of the statements.
    Batch axes are not included: the residual stream takes those from the inputs.
    """
    dims: dict[str, int] = {}
    for statement in plan.activations:
        dim = layout_dim(statement.layout, rank)
        if dim is None:
            raise _no_such_dim(statement, f"the activations have {rank} dims", range_text(rank))
        dims |= dict.fromkeys(statement.axes, dim)
    return dims


def resolve_buffers(plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, int]]:
    """By buffer that a statement names, the dim that each axis shards.

    Of an axis the last statement that names the buffer decides. Axes that shard the same dim nest in the order of the
    statements, the outermost first. Raises PlanError E0114 for a pattern that names no buffer, E0115 for a dim that a
    buffer lacks.
    """
    dims: dict[str, dict[str, int]] = {}
    for statement in plan.buffers:
        for index, pattern in enumerate(statement.patterns):
            if not any(globs.matches(pattern, name) for name in shapes):
                raise _names_no_buffer(pattern, statement.places.pattern(index), tuple(shapes))
        for name, shape in shapes.items():
            if statement.covers(name):
                dim = layout_dim(statement.layout, len(shape))
                if dim is None:
                    raise _no_such_dim(statement, f'"{name}" is {shape_text(shape)}', range_text(len(shape)))
                others = {axis: other for axis, other in dims.get(name, {}).items() if axis not in statement.axes}
                dims[name] = {**others, **dict.fromkeys(statement.axes, dim)}
    return dims


def _names_no_buffer(pattern: str, span: Span | None, known: tuple[str, ...]) -> PlanError:
    near = [f'"{text}"' for text in globs.nearest_patterns(pattern, known)]
    named = f'buffers of this model look like "{max(known, key=len)}"' if known else "the model has no buffers"
    message = f'"{pattern}" matches no buffer'
    return PlanError(PlanCode.NO_MATCH, message, span=span, help=f"did you mean {listed(near)}?" if near else named)


def _fits_no_input(statement: ShardInputs, shapes: Mapping[str, tuple[int, ...]]) -> PlanError:
    name, shape = max(shapes.items(), key=lambda item: len(item[1]))
    return _no_such_dim(statement, f'even "{name}" is {shape_text(shape)}', range_text(len(shape)))


def _no_such_dim(statement: ShardInputs | ShardActivations | ShardBuffers, why: str, expected: str) -> PlanError:
    return PlanError(
        PlanCode.DIM_OUT_OF_RANGE,
        f"the {statement.subject} have no {statement.layout}: {why}",
        span=statement.places.layout,
        expected=f"expected {expected}",
    )
