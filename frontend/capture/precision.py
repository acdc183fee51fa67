"""What a plan says of precision, done where the model is captured: the forward runs on casts of the parameters.

The casts stand in the graph as ops, so that a parameter's gradient is cast back by autograd. Retyping a captured graph
instead would be wrong: `x.to(torch.float32)` of a float32 tensor leaves no trace in it, and constants that a model
takes from a dtype (`torch.finfo(x.dtype).min`) are numbers in it already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...dsl.error import PlanCode, PlanError
from ...dsl.plan import Plan
from ...ir.attributes import dtype_of, format_name
from ..captured import META_KEY, Capture, CapturedTensor, InputKind, Origin


def compute_dtype(plan: Plan) -> torch.dtype | None:
    """What the plan casts parameters and floating inputs to; None where it casts nothing."""
    return dtype_of(plan.precision.compute) if plan.precision is not None else None


def check_parameters(model: nn.Module, plan: Plan) -> None:
    """Raises PlanError E0123 where a floating parameter is not of the format that the plan says of `params`."""
    precision = plan.precision
    wanted = dtype_of(precision.params) if precision is not None else None
    if precision is None or wanted is None:
        return
    for name, each in model.named_parameters():
        if each.is_floating_point() and each.dtype != wanted:
            found = format_name(each.dtype)
            raise PlanError(
                PlanCode.PARAMETER_PRECISION,
                f'parameter "{name}" is {found}, but the plan says that parameters are {precision.params}',
                span=precision.params_span or precision.span,
                help=f"call model.to({wanted}) before the optimizer is made, or leave params out of the plan",
            )


def effect_of_casts(captured: Capture, plan: Plan) -> dict[str, str]:
    """By key of the statement about precision: why nothing was cast; empty where something was."""
    compute = compute_dtype(plan)
    if compute is None:
        return {}
    kinds = (InputKind.PARAMETER, InputKind.INPUT)
    given = [each.dtype for each in captured.inputs if each.kind in kinds and each.dtype.is_floating_point]
    cast = any(dtype != compute for dtype in given)
    return {"precision": "" if cast else f"parameters and inputs are {format_name(compute)} already"}


@dataclass(frozen=True)
class ParameterCast:
    """A parameter of a module, and the cast that the module computes with in its place."""

    module: nn.Module
    name: str
    parameter: nn.Parameter
    cast: Tensor


def casts_of_parameters(model: nn.Module, dtype: torch.dtype | None) -> list[ParameterCast]:
    """Casts of the floating parameters to `dtype`, a tied one once; none where there is no dtype.

    Buffers are state, and stay what they are. So do the parameters of batch norms, whose kernels want them in the
    dtype of the running statistics.
    """
    casts: dict[int, Tensor] = {}
    found = []
    for module in model.modules() if dtype is not None else ():
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.is_floating_point() or parameter.dtype == dtype:
                continue
            if not isinstance(module, _BatchNorm):
                if id(parameter) not in casts:
                    casts[id(parameter)] = parameter.to(dtype)
                found.append(ParameterCast(module, name, parameter, casts[id(parameter)]))
    return found


@contextmanager
def in_place_of_parameters(casts: Sequence[ParameterCast]) -> Iterator[None]:
    """Inside, the modules hold the casts, as they do in `torch.func.functional_call`."""
    try:
        for each in casts:
            each.module._parameters[each.name] = each.cast  # type: ignore[assignment]  # what a module reads, it takes
        yield
    finally:
        for each in casts:
            each.module._parameters[each.name] = each.parameter


def cast_inputs(tensors: Sequence[Tensor], dtype: torch.dtype | None) -> tuple[Tensor, ...]:
    """The tensors of a call as the forward takes them: floating ones in `dtype`."""
    if dtype is None:
        return tuple(tensors)
    return tuple(each.to(dtype) if each.is_floating_point() else each for each in tensors)


def settle_casts(graph: fx.Graph, inputs: Sequence[CapturedTensor]) -> None:
    """Let each cast of a parameter belong to the module that owns it, and stand where it is first used.

    So a cast lives as long as its layer, and layers that are equal stay equal with their casts in them.
    """
    order = {node: at for at, node in enumerate(graph.nodes)}
    for each, placeholder in zip(inputs, graph.find_nodes(op="placeholder"), strict=True):
        if each.kind is not InputKind.PARAMETER:
            continue
        for cast in list(placeholder.users):
            own = cast.meta.get(META_KEY, Origin())
            if cast.target is not torch.ops.aten._to_copy.default or own.file or own.backward or not cast.users:
                continue
            first = min(cast.users, key=order.__getitem__)
            place = first.meta.get(META_KEY, Origin())
            first.prepend(cast)
            cast.meta[META_KEY] = Origin(each.name.rpartition(".")[0], place.file, place.line, False, own.seq_nr)
