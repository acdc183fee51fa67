"""Which inputs of a call are the batch: the names that a plan gives, and the part of a call that is one microbatch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from torch import Tensor

from ...diagnostics import StrettoError
from ...dsl.error import PlanCode, PlanError
from ...dsl.globs import nearest_patterns
from ...dsl.plan import Plan
from ...dsl.resolve_values import batch_inputs, states_role
from ...dsl.spelling import listed
from ...frontend.capture.call import BoundCall
from ...frontend.capture.capture import CapturedForward
from ...frontend.captured import CaptureError
from ...passes.sharding.check_batch import unclear_role
from .pipeline_requirements import is_alone


def check_input_names(plan: Plan, call: BoundCall) -> None:
    """Raise PlanError E0114 for a pattern that names no input of the call, and no argument that the call leaves out."""
    known = dict.fromkeys((*call.names, *call.signature.parameters))
    takes_any = any(each.kind is each.VAR_KEYWORD for each in call.signature.parameters.values())
    for statement in plan.inputs:
        for index, pattern in enumerate(statement.patterns):
            if takes_any or any(replace(statement, patterns=(pattern,)).covers(name) for name in known):
                continue
            near = [f'"{name}"' for name in nearest_patterns(pattern, known)]
            raise PlanError(
                PlanCode.NO_MATCH,
                f'"{pattern}" matches no input of the model',
                span=statement.places.pattern(index),
                expected=f"expected {listed([*known])}",
                help=f"did you mean {listed(near)}?" if near else "",
            )


def one_microbatch(call: BoundCall, plan: Plan) -> BoundCall:
    """The call with the rows of one microbatch, where the plan says that each is computed alone; else the call.

    Raises StrettoError E0402 where the batch cannot be cut evenly.
    """
    return _with_rows(call, _microbatch_rows(call, plan)) if is_alone(plan) else call


def capture_microbatch(call: BoundCall, plan: Plan, capture: Callable[[BoundCall], CapturedForward]) -> CapturedForward:
    """The forward of one microbatch of the call, where the plan says that each is computed alone; else of the call.

    Raises StrettoError E0402 where the batch cannot be cut evenly, E0405 where the forward of a part fails because an
    input was cut that the plan does not name, and what `capture` raises.
    """
    if not is_alone(plan):
        return capture(call)
    rows = _microbatch_rows(call, plan)
    try:
        return capture(_with_rows(call, rows))
    except CaptureError:
        for name in (*[*rows][1:], *[*rows][:1]):
            if not states_role(plan, name) and _succeeds(capture, call, {n: rows[n] for n in rows if n != name}):
                shape = call.tensors[call.names.index(name)].shape
                raise unclear_role(plan, tuple(rows), name, shape[0]) from None
        raise


def _succeeds(capture: Callable[[BoundCall], CapturedForward], call: BoundCall, rows: Mapping[str, int]) -> bool:
    """Whether a call is captured with these rows of its inputs."""
    with suppress(CaptureError):
        capture(_with_rows(call, rows))
        return bool(rows)
    return False


def _microbatch_rows(call: BoundCall, plan: Plan) -> dict[str, int]:
    """The rows of one microbatch, by name of the inputs that are the batch; at least one."""
    pipeline = plan.pipeline
    assert pipeline is not None, "each microbatch is computed alone"
    shapes = {name: tuple(tensor.shape) for name, tensor in zip(call.names, call.tensors, strict=True)}
    batch = batch_inputs(plan, shapes)
    span, count = pipeline.span_of("microbatches"), pipeline.microbatches
    if not batch:
        raise StrettoError("E0402", "the model has no input with a batch to cut into microbatches", span=span)
    for name in batch:
        if shapes[name][0] % count or not shapes[name][0]:
            raise StrettoError(
                "E0402",
                f'input "{name}" has {shapes[name][0]} rows, which {count} microbatches cannot share evenly',
                span=span,
                expected=f"expected a multiple of {count} rows",
                help="pass as many rows, or take as many microbatches as divide them",
            )
    rows = {name: shapes[name][0] // count for name in batch}
    for name, shape in shapes.items():
        # In the capture of one microbatch it would have as many rows as the batch.
        if name not in rows and not states_role(plan, name) and shape[:1] == (rows[batch[0]],):
            raise StrettoError(
                "E0402",
                f'input "{name}" has {shape[0]} rows, as many as a microbatch, and is not cut into microbatches',
                span=span,
                help=f'say so in the plan: shard inputs "{name}" whole',
            )
    return rows


def _with_rows(call: BoundCall, rows: Mapping[str, int]) -> BoundCall:
    """The call with the first rows of some inputs, as leaves."""
    pairs = zip(call.names, call.tensors, strict=True)
    return replace(call, tensors=tuple([_first_rows(t, rows[name]) if name in rows else t for name, t in pairs]))


def _first_rows(tensor: Tensor, rows: int) -> Tensor:
    return tensor if tensor.shape[0] == rows else tensor.detach()[:rows].requires_grad_(tensor.requires_grad)
