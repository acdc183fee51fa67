"""Apply a plan's precision at capture: the forward runs on casts of the parameters.

The casts are ops of the graph, so that autograd casts gradients back. Retyping a captured graph would be wrong:
`x.to(torch.float32)` of a float32 tensor leaves no op in it, and constants that depend on a dtype
(`torch.finfo(x.dtype).min`) are already numbers.
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
    """The dtype that the plan casts parameters and floating inputs to; None: no cast."""
    return dtype_of(plan.precision.compute) if plan.precision is not None else None


def check_parameters(model: nn.Module, plan: Plan) -> None:
    """Raises PlanError E0123 for a floating parameter whose dtype is not the plan's `params`."""
    precision = plan.precision
    expected = dtype_of(precision.params) if precision is not None else None
    if precision is None or expected is None:
        return
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != expected:
            actual = format_name(parameter.dtype)
            raise PlanError(
                PlanCode.PARAMETER_PRECISION,
                f'parameter "{name}" is {actual}, but the plan has params {precision.params}',
                span=precision.params_span or precision.span,
                help=f"call model.to({expected}) before the optimizer is made, or leave params out of the plan",
            )


def effect_of_casts(captured: Capture, plan: Plan) -> dict[str, str]:
    """By key of the precision statement: the reason why nothing is cast; empty if something is."""
    compute = compute_dtype(plan)
    if compute is None:
        return {}
    kinds = (InputKind.PARAMETER, InputKind.INPUT)
    dtypes = [tensor.dtype for tensor in captured.inputs if tensor.kind in kinds and tensor.dtype.is_floating_point]
    is_cast = any(dtype != compute for dtype in dtypes)
    return {"precision": "" if is_cast else f"parameters and inputs are {format_name(compute)} already"}


@dataclass(frozen=True)
class ParameterCast:
    """A parameter of a module, and its cast that the module computes with."""

    module: nn.Module
    name: str
    parameter: nn.Parameter
    cast: Tensor


def casts_of_parameters(model: nn.Module, dtype: torch.dtype | None) -> list[ParameterCast]:
    """Cast the floating parameters to `dtype`, a tied one once; empty without a dtype.

    Buffers are not cast, as they are state. Nor are the parameters of batch norms, whose kernels require the dtype of
    the running statistics.
    """
    casts: dict[int, Tensor] = {}
    parameter_casts = []
    for module in model.modules() if dtype is not None else ():
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.is_floating_point() or parameter.dtype == dtype:
                continue
            if not isinstance(module, _BatchNorm):
                if id(parameter) not in casts:
                    casts[id(parameter)] = parameter.to(dtype)
                parameter_casts.append(ParameterCast(module, name, parameter, casts[id(parameter)]))
    return parameter_casts


@contextmanager
def parameters_replaced_by_casts(casts: Sequence[ParameterCast]) -> Iterator[None]:
    """Inside, the modules hold the casts in place of the parameters, as in `torch.func.functional_call`."""
    try:
        for cast in casts:
            cast.module._parameters[cast.name] = cast.cast  # type: ignore[assignment]  # a tensor in place of a parameter
        yield
    finally:
        for cast in casts:
            cast.module._parameters[cast.name] = cast.parameter


def cast_inputs(tensors: Sequence[Tensor], dtype: torch.dtype | None) -> tuple[Tensor, ...]:
    """The tensors of a call with floating ones cast to `dtype`."""
    if dtype is None:
        return tuple(tensors)
    return tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors)


def move_casts_to_users(graph: fx.Graph, inputs: Sequence[CapturedTensor]) -> None:
    """Move each cast of a parameter to its first use, and attribute it to the module that owns the parameter.

    So a cast lives as long as its layer, and equal layers stay equal with their casts.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    for tensor, placeholder in zip(inputs, graph.find_nodes(op="placeholder"), strict=True):
        if tensor.kind is not InputKind.PARAMETER:
            continue
        for cast in list(placeholder.users):
            own = cast.meta.get(META_KEY, Origin())
            if cast.target is not torch.ops.aten._to_copy.default or own.file or own.backward or not cast.users:
                continue
            first = min(cast.users, key=order.__getitem__)
            place = first.meta.get(META_KEY, Origin())
            first.prepend(cast)
            cast.meta[META_KEY] = Origin(tensor.name.rpartition(".")[0], place.file, place.line, False, own.seq_nr)
