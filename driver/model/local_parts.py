"""Inputs of which each process passes its own part, in place of the global batch."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.utils import _pytree as pytree

from ...dsl.plan import Plan
from ...dsl.resolve_values import resolve_inputs
from ...frontend.capture.call import BoundCall
from ...runtime.processes.world import join
from ...runtime.program.mesh import RankMesh

T = TypeVar("T")


class LocalPart(Tensor):
    """A tensor that is this process's own part of an input. What is computed of it is one too."""


def local(batch: T) -> T:
    """Say of the tensors in a batch that they are this process's own part of it, of as many rows as all others' parts.

    For data loaders that split the data, one part for each rank of the batch's axes; ranks that share a part (those of
    a tensor axis) must pass the same. Without it every process passes the same global batch. Where ranks are threads
    there is one process, and its part is the batch. Containers of tensors stay what they are.

    >>> local({"tokens": torch.ones(2, 3)})["tokens"].shape
    torch.Size([2, 3])
    """
    mapped: T = pytree.tree_map_only(Tensor, lambda tensor: tensor.as_subclass(LocalPart), batch)
    return mapped


def with_parts(call: BoundCall, plan: Plan, processes: int) -> BoundCall:
    """The call with a DTensor for each input that is a part: global, cut as the plan cuts inputs."""
    if not any(isinstance(each, LocalPart) for each in call.tensors):
        return call
    pairs = zip(call.names, call.tensors, strict=True)
    return replace(call, tensors=tuple([_whole(name, each, plan, processes) for name, each in pairs]))


def _whole(name: str, tensor: Tensor, plan: Plan, processes: int) -> Tensor:
    if not isinstance(tensor, LocalPart):
        return tensor
    own = tensor.as_subclass(Tensor)
    if processes == 1 or not own.dim():
        return own
    world, mesh = join(), RankMesh(plan.mesh.axes)
    dims = resolve_inputs(plan, {name: tuple(own.shape)})[name]
    placements: list[Placement] = [Shard(dims[axis]) if axis in dims else Replicate() for axis, _ in mesh.axes]
    shape = [
        extent * prod(mesh.sizes[axis] for axis, at in dims.items() if at == dim)
        for dim, extent in enumerate(own.shape)
    ]
    stride = torch.empty(shape, device="meta").stride()
    device_mesh = world.device_mesh(mesh)
    return DTensor.from_local(
        own.contiguous(),
        device_mesh,
        placements or [Replicate()],
        run_check=False,
        shape=torch.Size(shape),
        stride=stride,
    )
