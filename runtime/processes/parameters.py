"""Parameters as DTensors: conversion between a program's shards and DTensor placements, and distribution of a module.

This is the one module that touches DTensor's internals (its constructor and spec, because `DTensor.from_local` costs
70 us a tensor and the constructor 5).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from ..errors import RunError, rank_list
from ..program.mesh import RankMesh
from ..program.program import Program
from ..program.records import Shard as ProgramShard
from ..rank.shards import in_order, local_shape, local_tensor, valid_part
from .device_meshes import Nests, Stage, mesh_dims
from .dtensor import DistributedTensor
from .world import World


class Layout:
    """The layout of one program tensor on the mesh: converts between DTensors and padded local tensors.

    A DTensor is cut as a whole where the program cuts inside blocks; conversions then exchange the blocks' chunks over
    the axes of that dim, so that all ranks of the tensor must call them.
    """

    def __init__(
        self,
        world: World,
        mesh: RankMesh,
        shape: Sequence[int],
        shards: Sequence[ProgramShard],
        dtype: torch.dtype,
        stage: Stage | None = None,
    ) -> None:
        """`stage` is that of the only ranks that have the tensor; other ranks have an empty part."""
        self.shards = tuple(shards)
        self._blocked = [shard for shard in shards if shard.blocks]
        self._world = world
        self.has_local_part = stage is None or mesh.coordinates(world.rank)[stage[0]] == stage[1]
        self.placements = placements_of(shards, mesh, stage)
        self._mesh = mesh
        self._rank = world.rank
        self._device_mesh = device_mesh_of(shards, mesh, world, stage)
        self._padded = any(shard.chunk * mesh.size(shard.axes) != shard.extent for shard in shards)
        whole = torch.empty(list(shape), dtype=dtype, device="meta")
        plain = without_blocks(shards)
        own = torch.empty(
            valid_part(local_tensor(whole, plain, mesh, world.rank), plain, mesh, world.rank).shape, dtype=dtype
        )
        example = DTensor.from_local(
            own.to(world.device), self._device_mesh, self.placements, shape=whole.shape, stride=whole.stride()
        )
        self._spec: Any = example._spec

    def dtensor(self, padded: Tensor) -> DTensor:
        """The global tensor of which `padded` is this rank's part; shares its memory where that is contiguous."""
        local = valid_part(padded, self.shards, self._mesh, self._rank) if self._padded else padded
        local = local if self.has_local_part else local.new_empty(0)
        local = self._joined(local) if self._blocked and self.has_local_part else local
        make: Any = DistributedTensor
        dtensor: DTensor = make(local.contiguous(), self._spec, requires_grad=False)
        return dtensor

    def padded(self, tensor: DTensor) -> Tensor:
        """The program's local tensor for a DTensor of these placements: its local part, copied only to pad it."""
        local = self._in_blocks(tensor) if self._blocked else tensor.to_local()
        if not self._padded:
            return local
        padded = local.new_zeros(local_shape(tensor.shape, self.shards))
        valid_part(padded, self.shards, self._mesh, self._rank).copy_(local)
        return padded

    def _in_blocks(self, tensor: DTensor) -> Tensor:
        """This rank's chunk of each block, and its part along other dims."""
        local = self._whole_along_blocks(tensor)
        return local_tensor(local, self._blocked, self._mesh, self._rank).contiguous()

    def _joined(self, chunks: Tensor) -> Tensor:
        """The inverse of `_in_blocks`: this rank's part where dims are cut as a whole."""
        make: Any = DistributedTensor
        local = self._whole_along_blocks(make(chunks.contiguous(), self._spec, requires_grad=False))
        for shard in self._blocked:
            local = in_order(local, shard, self._mesh.size(shard.axes))
        return local_tensor(local, without_blocks(self._blocked), self._mesh, self._rank)

    def _whole_along_blocks(self, tensor: DTensor) -> Tensor:
        """The ranks' parts along dims with blocks one after the other."""
        dims = {shard.dim for shard in self._blocked}
        kept = [Replicate() if isinstance(p, Shard) and p.dim in dims else p for p in self.placements]
        with torch.no_grad(), self._world.watched("exchanging the blocks of a parameter"):
            return tensor.redistribute(self._device_mesh, kept).to_local()

    def redistributed(self, tensor: DTensor) -> DTensor:
        """`tensor` in these placements; communicates where its own differ."""
        return tensor if self.matches(tensor) else tensor.redistribute(self._device_mesh, self.placements)

    def is_part(self, tensor: DTensor) -> bool:
        """Whether the local part of `tensor` is the program's own: in place, without padding and blocks."""
        return self.matches(tensor) and not self._padded and not self._blocked

    def __str__(self) -> str:
        return placement_text(self.placements, self._device_mesh)

    def matches(self, tensor: DTensor) -> bool:
        """Whether a DTensor has these placements on this mesh."""
        same_mesh = tensor.device_mesh is self._device_mesh or tensor.device_mesh == self._device_mesh
        return same_mesh and tuple(tensor.placements) == self.placements


def placement_of(tensor: DTensor) -> str:
    """The placements of a DTensor as text, for errors."""
    return placement_text(tensor.placements, tensor.device_mesh)


def placement_text(placements: Sequence[Placement], mesh: DeviceMesh) -> str:
    """Placements as text, and the ranks of the mesh unless it has all."""
    text = ", ".join(str(placement) for placement in placements)
    ranks = mesh.mesh.flatten().tolist()
    return text if len(ranks) == dist.get_world_size() else f"{text} on {rank_list(ranks)}"


def without_blocks(shards: Sequence[ProgramShard]) -> tuple[ProgramShard, ...]:
    """The shards with every dim cut as a whole, as DTensors are."""
    return tuple(replace(shard, blocks=()) for shard in shards)


def device_mesh_of(
    shards: Sequence[ProgramShard], mesh: RankMesh, world: World, stage: Stage | None = None
) -> DeviceMesh:
    """The device mesh of a DTensor with these shards."""
    return world.device_mesh(mesh, stage, _nests(shards, mesh))


def placements_of(shards: Sequence[ProgramShard], mesh: RankMesh, stage: Stage | None = None) -> tuple[Placement, ...]:
    """One placement for each dim of the device mesh of these shards."""
    dims = mesh_dims(mesh, stage, _nests(shards, mesh))
    dim_of = {axis: shard.dim for shard in shards for axis in shard.axes}
    return tuple(Shard(dim_of[axes[0]]) if axes and axes[0] in dim_of else Replicate() for axes in dims)


def _nests(shards: Sequence[ProgramShard], mesh: RankMesh) -> Nests:
    """The axes of each dim that DTensor would shard otherwise, axis by axis; as one dim of a mesh they are right.

    DTensor shards a dim by one axis after the other, in the mesh's order. That gives the equal chunks of a program only
    where the axes are in this order and divide the extent.
    """
    nests = []
    for shard in shards:
        cutting = [axis for axis in shard.axes if mesh.sizes[axis] > 1]
        in_order = [axis for axis, _ in mesh.axes if axis in cutting]
        if len(cutting) > 1 and (cutting != in_order or shard.extent % mesh.size(cutting)):
            nests.append(shard.axes)
    return tuple(nests)


def parameter_shards(program: Program) -> dict[str, tuple[ProgramShard, ...]]:
    """The shards of each parameter, by each of its names."""
    return {
        name: argument.shards
        for argument in program.of_kind("parameter")
        for name in dict.fromkeys([argument.name, *argument.aliases])
    }


def distribute_parameters(
    module: nn.Module, shards: Mapping[str, Sequence[ProgramShard]], world: World, mesh: RankMesh
) -> dict[str, nn.Parameter]:
    """Replace the module's parameters, in place, by DTensors; returns the replaced parameters by name.

    Names, order, ties, `requires_grad` and attributes stay. `shards` has any name of a parameter as key; parameters
    without shards are replicated. Parameters that are DTensors already stay. All processes must have the same full
    values, else raises RunError E0354. `load_state_dict` takes full tensors as before.
    """
    names: dict[int, list[str]] = {}
    full: dict[int, nn.Parameter] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if not isinstance(parameter, DTensor):
            names.setdefault(id(parameter), []).append(name)
            full[id(parameter)] = parameter
    replaced = {names[key][0]: parameter for key, parameter in full.items()}
    _check_equal(replaced, world)
    distributed_by_id = {
        key: distribute_parameter(
            full[key], next((shards[name] for name in aliases if name in shards), ()), world, mesh
        )
        for key, aliases in names.items()
    }
    distributed_ids = {id(parameter) for parameter in distributed_by_id.values()}
    for submodule in module.modules():
        for key, parameter in submodule.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) in distributed_by_id:
                submodule.register_parameter(key, distributed_by_id[id(parameter)])
        if any(id(parameter) in distributed_ids for parameter in submodule.parameters(recurse=False)):
            # torch's public way holds the module weakly, and a compiled model is another object on the same attributes
            submodule._register_load_state_dict_pre_hook(partial(_load_local_parts, submodule._parameters))  # type: ignore[no-untyped-call]
    return replaced


def distribute_parameter(
    parameter: Tensor,
    shards: Sequence[ProgramShard],
    world: World,
    mesh: RankMesh,
    stage: Stage | None = None,
) -> nn.Parameter:
    """The full `parameter` as a DTensor of which this process has its part; uninitialized for a meta tensor.

    `stage`: see `Layout`.
    """
    with torch.no_grad():
        shards = without_blocks(shards)
        layout = Layout(world, mesh, parameter.shape, shards, parameter.dtype, stage)
        own = local_tensor(parameter.detach(), shards, mesh, world.rank)
        own = torch.empty_like(own, device=world.device) if own.is_meta else own.to(world.device, copy=True)
        distributed = nn.Parameter(layout.dtensor(own), parameter.requires_grad)
    distributed.__dict__.update(parameter.__dict__)
    return distributed


def has_local_part(tensor: Tensor) -> bool:
    """Whether this process has a part of a tensor; it has none of a DTensor on the ranks of another stage."""
    return not isinstance(tensor, DTensor) or tensor.device_mesh.get_coordinate() is not None


def move_to(tensor: DTensor, mesh: DeviceMesh) -> None:
    """Move `tensor`, in place, to `mesh`, which has some of its ranks; the other processes free their part.

    The axes that the smaller mesh lacks must not shard it. References to the tensor, as from an optimizer, stay valid.
    """
    if not tensor.device_mesh.mesh_dim_names:
        return
    by_axis = dict(zip(tensor.device_mesh.mesh_dim_names, tensor.placements, strict=True))
    placements = tuple(by_axis.get(name, Replicate()) for name in mesh.mesh_dim_names or ())
    if mesh.get_coordinate() is None:
        tensor._local_tensor = tensor._local_tensor.new_empty(0)
    tensor._spec = DTensorSpec(mesh, placements, tensor_meta=tensor._spec.tensor_meta)


def local_window(tensor: DTensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of this process's part of a DTensor, and its offsets in the global tensor."""
    return compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)


def _load_local_parts(
    parameters: Mapping[str, Tensor | None], state: dict[str, Any], prefix: str, *unused: object
) -> None:
    """A hook of `load_state_dict`: replaces full tensors by this process's parts where the module has DTensors."""
    for name, own in parameters.items():
        value = state.get(prefix + name)
        if not (isinstance(own, DTensor) and isinstance(value, Tensor)) or isinstance(value, DTensor):
            continue
        if value.shape == own.shape:
            value = _local_part(own, value) if has_local_part(own) else value.new_empty(0)
            local = value.detach().to(own.to_local().device)
            state[prefix + name] = DTensor.from_local(
                local, own.device_mesh, own.placements, run_check=False, shape=own.shape, stride=own.stride()
            )


def _local_part(own: DTensor, value: Tensor) -> Tensor:
    shape, offsets = local_window(own)
    for dim, (start, extent) in enumerate(zip(offsets, shape, strict=True)):
        value = value.narrow(dim, min(start, value.shape[dim]), extent)
    return value


def _check_equal(parameters: Mapping[str, Tensor], world: World) -> None:
    """Raise RunError E0354 unless all processes have the same values. Compares hashes."""
    digests = {name: _digest(tensor) for name, tensor in parameters.items() if not tensor.is_meta}
    together = world.all_gather_bytes(hashlib.sha256(b"".join(digests.values())).digest())
    if len(set(together)) == 1:
        return
    for name, digest in digests.items():
        digests_by_rank = world.all_gather_bytes(digest)
        if len(set(digests_by_rank)) > 1:
            differing = [rank for rank, rank_digest in enumerate(digests_by_rank) if rank_digest != digests_by_rank[0]]
            raise RunError(
                "E0354",
                f"parameter '{name}' differs between processes: {rank_list(differing)} "
                f"{'has' if len(differing) == 1 else 'have'} another value than rank 0",
                help="set the same seed in all processes (torch.manual_seed) before you make the model, "
                "or load the same weights",
            )


def _digest(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).digest()
