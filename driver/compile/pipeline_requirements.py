"""What a pipeline asks of the model that it trains, and which part of a call is one microbatch."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ...diagnostics import StrettoError
from ...dsl.plan import Plan
from ...frontend.capture.call import BoundCall
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


def _way_out(losses: int) -> str:
    alone = "for results alone call the model in eval mode or under no_grad()"
    if losses > 1:
        return f"detach the results that are only looked at, .detach(), so that the loss alone is left; {alone}"
    return f"compute the loss inside the model's forward; {alone}"


def one_microbatch(call: BoundCall, plan: Plan) -> BoundCall:
    """The call with the rows of one microbatch, where the plan says that each is computed alone; else the call.

    Tensors whose dim 0 is that of the first are the batch. Raises StrettoError E0402 where microbatches do not share
    its rows evenly, or another tensor cannot be told from their parts.
    """
    said = plan.pipeline
    if said is None or not is_alone(plan):
        return call
    batch = next((each.shape[0] for each in call.tensors if each.dim()), None)
    span, count = said.span_of("microbatches"), said.microbatches
    if batch is None:
        raise StrettoError("E0402", "the model has no input with a batch to cut into microbatches", span=span)
    if batch % count or not batch:
        name = next(name for name, each in zip(call.names, call.tensors, strict=True) if each.dim())
        raise StrettoError(
            "E0402",
            f'input "{name}" has {batch} rows, which {count} microbatches cannot share evenly',
            span=span,
            expected=f"expected a multiple of {count} rows",
            help="pass as many rows, or take as many microbatches as divide them",
        )
    rows = batch // count
    for name, each in zip(call.names, call.tensors, strict=True):
        if rows != batch and each.dim() and each.shape[0] == rows:
            raise StrettoError(
                "E0402",
                f'input "{name}" has {rows} rows, as many as a microbatch, and is not cut into microbatches',
                span=span,
                help="give it another first dim (unsqueeze(0) adds one), or take another number of microbatches",
            )
    return replace(call, tensors=tuple([_first_rows(each, batch, rows) for each in call.tensors]))


def _first_rows(tensor: Tensor, batch: int, rows: int) -> Tensor:
    """The part of one microbatch, as a leaf."""
    if not tensor.dim() or tensor.shape[0] != batch:
        return tensor
    return tensor.detach()[:rows].requires_grad_(tensor.requires_grad)
