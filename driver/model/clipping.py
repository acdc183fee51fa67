"""Clipping gradients by their norm, whatever a plan has cut."""

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
from .compiled_module import compiled_module, is_compiled
from .distribution import processes

_EPSILON = 1e-6
"""Added to the norm before dividing by it, as `torch.nn.utils.clip_grad_norm_` does."""


def clip_grad_norm_(
    model: nn.Module, max_norm: float, norm_type: float = 2.0, *, error_if_nonfinite: bool = False
) -> Tensor:
    """Scale the gradients of a model's parameters so that their common norm is at most `max_norm`; the norm before.

    It is the norm of the whole gradients, the same on every rank, whether they are held whole or as DTensors, of one
    mesh or several. Where ranks are processes, all of them must call it. `norm_type` is the p of the p-norm, `math.inf`
    included.

    Raises StrettoError E0605 while gradients wait for their reduction, E0606 (if asked) for a norm that is not finite.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> model.weight.grad = torch.tensor([[3.0, 4.0]])
    >>> clip_grad_norm_(model, 1.0).item()
    5.0
    """
    if is_compiled(model) and compiled_module(model).waits:
        raise StrettoError(
            "E0605",
            "clip_grad_norm_ was called while gradients wait for their reduction",
            expected="a backward outside no_sync() before it",
            help="leave `with model.no_sync():` before the last forward and backward of a step",
        )
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    p = float(norm_type)
    total = _over_stages(model, gradients, p) if _has_stages(model) else _norm(gradients, p)
    if error_if_nonfinite and not bool(total.isfinite()):
        raise StrettoError(
            "E0606",
            f"the norm of the gradients is {total.item()}, so they cannot be clipped",
            help="skip the step, or find the operation under `with stretto.detect_anomaly():`",
        )
    factor = (max_norm / (total + _EPSILON)).clamp(max=1.0)
    for gradient in gradients:
        own = _local(gradient)
        own.mul_(factor.to(own.device, own.dtype))
    return total


def _norm(gradients: Sequence[Tensor], p: float) -> Tensor:
    """The p-norm of all gradients together."""
    groups: dict[tuple[DeviceMesh | None, tuple[int, ...]], list[Tensor]] = {}
    for each in gradients:
        groups.setdefault(_cut_by(each), []).append(_local(each))
    norms = [_over_ranks(get_total_norm(own, p), mesh, dims, p) for (mesh, dims), own in groups.items()]
    return torch.linalg.vector_norm(torch.stack(norms), p) if norms else torch.tensor(0.0)


def _has_stages(model: nn.Module) -> bool:
    """Whether processes hold parameters of their own stage of a pipeline alone."""
    plans = [compiled_module(each).plan for each in model.modules() if is_compiled(each)]
    return any(plan.pipeline is not None for plan in plans) and processes() > 1


def _over_stages(model: nn.Module, gradients: Sequence[Tensor], p: float) -> Tensor:
    """The p-norm of all gradients together, those included that ranks of other stages hold."""
    staged = [each for each in gradients if isinstance(each, DTensor) and each.device_mesh.size() < processes()]
    others = [each for each in gradients if all(each is not one for one in staged)]
    own = _norm(staged, p).double()
    if math.isinf(p):
        dist.all_reduce(own, dist.ReduceOp.MAX)
    else:
        # Each rank of a stage knows its norm: together they must bring it once.
        own = own**p / next((each.device_mesh.size() for each in staged), 1)
        dist.all_reduce(own, dist.ReduceOp.SUM)
        own = own ** (1.0 / p)
    both = torch.stack([own, _norm(others, p).to(own.device, own.dtype)])
    total: Tensor = torch.linalg.vector_norm(both, p)
    return total.to(next(model.parameters()).dtype)


def _cut_by(tensor: Tensor) -> tuple[DeviceMesh | None, tuple[int, ...]]:
    """The mesh of a DTensor and the mesh's dims that cut it."""
    if not isinstance(tensor, DTensor):
        return None, ()
    return tensor.device_mesh, tuple(at for at, each in enumerate(tensor.placements) if isinstance(each, Shard))


def _over_ranks(own: Tensor, mesh: DeviceMesh | None, dims: Sequence[int], p: float) -> Tensor:
    """The norm of what the ranks along some dims of the mesh hold together, from the norm of this rank's part."""
    if mesh is None or not dims:
        return own
    most = math.isinf(p)
    whole = own.clone() if most else own**p
    for dim in dims:
        dist.all_reduce(whole, dist.ReduceOp.MAX if most else dist.ReduceOp.SUM, group=mesh.get_group(dim))
    return whole if most else whole ** (1.0 / p)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
