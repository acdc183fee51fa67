"""Gradient clipping by the norm of the whole gradients, sharded or not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn.utils import get_total_norm

from ...diagnostics import StrettoError
from ...runtime.processes.world import call, join
from .compiled_module import compiled_module, is_compiled
from .distribution import processes

_EPSILON = 1e-6
"""Added to the norm before dividing by it, as `torch.nn.utils.clip_grad_norm_` does."""


def clip_grad_norm_(
    model: nn.Module, max_norm: float, norm_type: float = 2.0, *, error_if_nonfinite: bool = False
) -> Tensor:
    """Scale a model's gradients so that their common norm is at most `max_norm`; returns the norm before scaling.

    The norm is that of the global gradients and is the same on every rank, for plain tensors and DTensors, on one mesh
    or several. Where ranks are processes, all of them must call it. `norm_type` is the p of the p-norm; `math.inf` is
    allowed.

    Raises StrettoError E0601 for anything but a model, E0605 while gradients are not reduced, E0606 (with
    `error_if_nonfinite`) for an infinite or NaN norm.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> model.weight.grad = torch.tensor([[3.0, 4.0]])
    >>> clip_grad_norm_(model, 1.0).item()
    5.0
    """
    if not isinstance(model, nn.Module):
        raise StrettoError(
            "E0601",
            f'clip_grad_norm_ got a value of type "{type(model).__qualname__}"',
            expected="the model whose gradients are clipped, as stages of a pipeline have parameters elsewhere",
            help="call stretto.clip_grad_norm_(model, max_norm)",
        )
    if is_compiled(model) and compiled_module(model).has_unreduced_gradients:
        raise StrettoError(
            "E0605",
            "clip_grad_norm_ was called before the gradients are reduced",
            expected="a backward outside no_sync() before the call; it reduces all gradients",
            help="leave `with model.no_sync():` before the last forward and backward of a step",
        )
    with call("clip_grad_norm_"):
        return _clip(model, max_norm, float(norm_type), error_if_nonfinite=error_if_nonfinite)


def _clip(model: nn.Module, max_norm: float, p: float, *, error_if_nonfinite: bool) -> Tensor:
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    total = _over_stages(model, gradients, p) if _has_stages(model) else _norm(gradients, p)
    if error_if_nonfinite and not bool(total.isfinite()):
        raise StrettoError(
            "E0606",
            f"the norm of the gradients is {total.item()}, so they cannot be clipped",
            expected="a finite norm",
            help="skip the step, or run the model under `with stretto.detect_anomaly():` to find the operation",
        )
    factor = (max_norm / (total + _EPSILON)).clamp(max=1.0)
    for gradient in gradients:
        own = _local(gradient)
        own.mul_(factor.to(own.device, own.dtype))
    return total


def _norm(gradients: Sequence[Tensor], p: float) -> Tensor:
    """The p-norm of all gradients together."""
    groups: dict[tuple[DeviceMesh | None, tuple[int, ...]], list[Tensor]] = {}
    for gradient in gradients:
        groups.setdefault(_sharding_of(gradient), []).append(_local(gradient))
    norms = [_over_ranks(get_total_norm(parts, p), mesh, dims, p) for (mesh, dims), parts in groups.items()]
    return torch.linalg.vector_norm(torch.stack(norms), p) if norms else torch.tensor(0.0)


def _has_stages(model: nn.Module) -> bool:
    """Whether each process holds only the parameters of its own pipeline stage."""
    plans = [compiled_module(module).plan for module in model.modules() if is_compiled(module)]
    return any(plan.pipeline is not None for plan in plans) and processes() > 1


def _over_stages(model: nn.Module, gradients: Sequence[Tensor], p: float) -> Tensor:
    """The p-norm of all gradients together, including those of the other stages."""
    staged = [
        gradient
        for gradient in gradients
        if isinstance(gradient, DTensor) and gradient.device_mesh.size() < processes()
    ]
    others = [gradient for gradient in gradients if all(gradient is not other for other in staged)]
    own = _norm(staged, p).double()
    if math.isinf(p):
        _all_reduce(own, dist.ReduceOp.MAX)
    else:
        # Every rank of a stage has the stage's norm; the sum over all ranks must count it once.
        own = own**p / next((gradient.device_mesh.size() for gradient in staged), 1)
        _all_reduce(own, dist.ReduceOp.SUM)
        own = own ** (1.0 / p)
    both = torch.stack([own, _norm(others, p).to(own.device, own.dtype)])
    total: Tensor = torch.linalg.vector_norm(both, p)
    return total.to(next(model.parameters()).dtype)


def _sharding_of(tensor: Tensor) -> tuple[DeviceMesh | None, tuple[int, ...]]:
    """The mesh of a DTensor, and the mesh dims that shard it."""
    if not isinstance(tensor, DTensor):
        return None, ()
    return tensor.device_mesh, tuple(
        dim for dim, placement in enumerate(tensor.placements) if isinstance(placement, Shard)
    )


def _over_ranks(norm: Tensor, mesh: DeviceMesh | None, dims: Sequence[int], p: float) -> Tensor:
    """The norm over the ranks of some mesh dims, from the norm of this rank's part."""
    if mesh is None or not dims:
        return norm
    is_max = math.isinf(p)
    total = norm.clone() if is_max else norm**p
    for dim in dims:
        _all_reduce(total, dist.ReduceOp.MAX if is_max else dist.ReduceOp.SUM, mesh.get_group(dim))
    return total if is_max else total ** (1.0 / p)


def _all_reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType, group: dist.ProcessGroup | None = None) -> None:
    """All-reduce a number in place, over a group or all processes."""
    where = "summing the norm of the gradients"
    join().run(lambda: dist.all_reduce(tensor, operation, group, async_op=True), where, group)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
