"""What a pipeline asks of the model that it runs."""

from __future__ import annotations

from collections.abc import Sequence

from ...diagnostics import StrettoError
from ...dsl.plan import Plan
from ...frontend.captured import Capture, InputKind, OutputKind


def is_alone(plan: Plan) -> bool:
    """Whether the plan says that each microbatch is computed alone."""
    return plan.pipeline is not None and plan.pipeline.per_microbatch


def check_loss(captured: Capture, plan: Plan) -> None:
    """Raise StrettoError E0616 unless what a pipeline trains has one result to differentiate, which is a number."""
    losses = [each for each in captured.inputs if each.kind is InputKind.TANGENT]
    trains = any(each.kind is OutputKind.GRADIENT for each in captured.outputs)
    if plan.pipeline is None or not trains or [each.shape for each in losses] == [()]:
        return
    shapes = ", ".join(f"{each.name or 'its result'} of shape {list(each.shape)}" for each in losses)
    raise StrettoError(
        "E0616",
        f"the plan has a pipeline, and the forward gives no scalar loss to train with, but {shapes}",
        span=plan.pipeline.span,
        expected="one loss, a number, in the result of the forward: the backwards of the first microbatches run "
        "before the forwards of the last",
        help=_way_out(len(losses)),
    )


def check_states(states: Sequence[str], plan: Plan) -> None:
    """Raise StrettoError E0425 for states of a model that runs as a pipeline: a microbatch would change a part."""
    if plan.pipeline is None or not states:
        return
    raise StrettoError(
        "E0425",
        f'the plan has a pipeline, which keeps no states, and "{states[0]}" is one'
        + (f", and {len(states) - 1} more" if len(states) > 1 else ""),
        span=plan.pipeline.span,
        expected="states of a program that computes the whole batch at once",
        help="run the model that has states under a plan without a pipeline: shard its layers by columns and rows over "
        f'"{plan.pipeline.axis}"',
    )


def _way_out(losses: int) -> str:
    alone = "for results alone call the model in eval mode or under no_grad()"
    if losses > 1:
        return f"detach the results that are only looked at, .detach(), so that the loss alone is left; {alone}"
    return f"compute the loss inside the model's forward; {alone}"
