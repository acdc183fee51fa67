"""Inputs of which each process passes its local part instead of the global batch."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils import _pytree as pytree

from ...dsl.plan import Plan
from ...dsl.resolve_values import resolve_inputs, stated_role
from ...dsl.shard import Role
from ...frontend.capture.call import BoundCall
from ...ir.placement import Placement
from ...runtime.processes.parameters import device_mesh_of, placements_of
from ...runtime.processes.world import join
from ...runtime.program.mesh import RankMesh
from ...runtime.program.records import Shard

T = TypeVar("T")


class LocalPart(Tensor):
    """A tensor that is this process's part of an input. Tensors computed from it are parts too."""


def local(batch: T) -> T:
    """Mark the tensors of a batch as this process's part of it; all parts must have the same number of rows.

    For data loaders that split the data: one part for each rank of the batch's axes. Ranks that share a part (those of
    a tensor axis) must pass the same tensors. Without `local` every process passes the same global batch. Where ranks
    are threads there is one process, and its part is the whole batch. Containers of tensors keep their structure.

    >>> local({"tokens": torch.ones(2, 3)})["tokens"].shape
    torch.Size([2, 3])
    """
    mapped: T = pytree.tree_map_only(Tensor, lambda tensor: tensor.as_subclass(LocalPart), batch)
    return mapped


def with_parts(call: BoundCall, plan: Plan, processes: int) -> BoundCall:
    """The call with each local part replaced by a DTensor of the global shape, sharded as the plan shards inputs."""
    if not any(isinstance(tensor, LocalPart) for tensor in call.tensors):
        return call
    pairs = zip(call.names, call.tensors, strict=True)
    return replace(call, tensors=tuple([_global(name, tensor, plan, processes) for name, tensor in pairs]))


def _global(name: str, tensor: Tensor, plan: Plan, processes: int) -> Tensor:
    if not isinstance(tensor, LocalPart):
        return tensor
    part = tensor.as_subclass(Tensor)
    if processes == 1 or not part.dim():
        return part
    world, mesh = join(), RankMesh(plan.mesh.axes)
    batch = () if stated_role(plan, name) is Role.WHOLE else (name,)
    dims = resolve_inputs(plan, {name: tuple(part.shape)}, batch)[name]
    by_dim = enumerate(zip(Placement.of_shards(part.dim(), dims).dims, part.shape, strict=True))
    shards = [Shard(dim, axes, extent, extent * mesh.size(axes)) for dim, (axes, extent) in by_dim if axes]
    shape = list(part.shape)
    for shard in shards:
        shape[shard.dim] = shard.extent
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        part.contiguous(),
        device_mesh_of(shards, mesh, world),
        placements_of(shards, mesh),
        run_check=False,
        shape=torch.Size(shape),
        stride=stride,
    )
