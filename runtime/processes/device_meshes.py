"""The device meshes of DTensors: one dim for each axis, or one for axes that nest in another way than DTensor's.

DTensor shards a dim by one axis after the other, in the mesh's order. Where a plan nests axes in another order, or
where their sizes do not divide the dim, these axes become one dim of the device mesh: over one dim, DTensor cuts the
equal chunks of a program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..errors import RunError
from ..program.mesh import RankMesh

Stage = tuple[str, int]
"""The pipeline axis, and the coordinate of a stage on it."""
Nests = tuple[tuple[str, ...], ...]
"""Axes that one dim of a device mesh has together, outermost first."""


def mesh_dims(mesh: RankMesh, stage: Stage | None, nests: Nests) -> Nests:
    """The axes of each dim of a device mesh: a nest together, where its first axis stands, every other axis alone.

    >>> mesh_dims(RankMesh((("pp", 2), ("dp", 2), ("tp", 2))), ("pp", 0), (("tp", "dp"),))
    (('tp', 'dp'),)
    """
    nest_of = {axis: nest for nest in nests for axis in nest}
    axes = [axis for axis, _ in mesh.axes if stage is None or axis != stage[0]]
    return tuple(dict.fromkeys(nest_of.get(axis, (axis,)) for axis in axes)) or ((),)


def make_device_mesh(
    mesh: RankMesh,
    stage: Stage | None,
    nests: Nests,
    new_group: Callable[[Sequence[int]], dist.ProcessGroup],
    device_type: str,
) -> DeviceMesh:
    """The device mesh with `mesh_dims`. `new_group` connects the listed ranks, numbered as they are listed.

    Raises RunError E0355 where torch has no such groups and ranks do not ascend.
    """
    dims = mesh_dims(mesh, stage, nests)
    sizes = tuple(mesh.size(axes) for axes in dims)
    names = tuple("_".join(axes) or "rank" for axes in dims)
    if stage is None and not nests:
        return init_device_mesh(device_type, sizes, mesh_dim_names=names)
    first = 0 if stage is None else mesh.rank_at({**dict.fromkeys(mesh.sizes, 0), stage[0]: stage[1]})
    ranks = torch.tensor(mesh.group(first, [axis for axes in dims for axis in axes])).reshape(sizes)
    if all(axes == tuple(axis for axis, _ in mesh.axes if axis in axes) for axes in dims):
        return DeviceMesh(device_type, ranks, mesh_dim_names=names)
    check_unsorted_groups(ranks)
    groups = []
    for dim, size in enumerate(sizes):
        for members in ranks.movedim(dim, -1).reshape(-1, size).tolist():
            group = new_group(members)
            groups += [group] if dist.get_rank() in members else []
    if not groups:  # this process has no part of such tensors
        return DeviceMesh(device_type, ranks, mesh_dim_names=names, _init_backend=False)
    return DeviceMesh.from_group(groups, device_type, ranks, mesh_dim_names=names)


def check_unsorted_groups(ranks: Tensor) -> None:
    """Raise RunError E0355 where torch sorts the ranks of a group (before 2.13)."""
    if "sort_ranks" not in signature(dist.new_group).parameters:
        raise RunError(
            "E0355",
            f"torch {torch.__version__} has no process group with its ranks in the order {ranks.flatten().tolist()}, "
            "in which the plan nests axes on one dim",
            expected="torch 2.13, or axes that nest in the mesh's order",
            help="declare the axes of the mesh in the order in which they nest, or run the ranks as threads",
        )
