"""Parameters as DTensors: how a program's shards are said in torch's words, and a module made to hold only its part.

This is the one module that touches DTensor's internals (its constructor and spec, because `DTensor.from_local` costs
70 us a tensor and the constructor 5).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from ..errors import RunError
from ..program.mesh import RankMesh
from ..program.program import Program
from ..program.records import Shard as ProgramShard
from ..rank.shards import cut, local_shape, valid_part
from .dtensor import DistributedTensor
from .watchdog import name as ranks_are
from .world import World


class Layout:
    """One global tensor of a program on the mesh: between DTensors, whose shards are not padded, and padded locals."""

    def __init__(
        self,
        world: World,
        mesh: RankMesh,
        shape: Sequence[int],
        shards: Sequence[ProgramShard],
        dtype: torch.dtype,
        stage: tuple[str, int] | None = None,
    ) -> None:
        """`stage` is an axis and the coordinate on it whose ranks alone have it; the others hold an empty part."""
        self.shards = tuple(shards)
        self.is_here = stage is None or mesh.coordinates(world.rank)[stage[0]] == stage[1]
        self.placements = placements_of(shards, mesh, None if stage is None else stage[0])
        self._mesh = mesh
        self._rank = world.rank
        self._device_mesh = world.device_mesh(mesh, stage)
        self._padded = any(shard.chunk * mesh.size(shard.axes) != shard.extent for shard in shards)
        whole = torch.empty(list(shape), dtype=dtype, device="meta")
        own = torch.empty(valid_part(cut(whole, shards, mesh, world.rank), shards, mesh, world.rank).shape, dtype=dtype)
        example = DTensor.from_local(
            own.to(world.device), self._device_mesh, self.placements, shape=whole.shape, stride=whole.stride()
        )
        self._spec: Any = example._spec

    def dtensor(self, padded: Tensor) -> DTensor:
        """The global tensor of which this rank holds `padded`; shares its memory where that is contiguous."""
        local = valid_part(padded, self.shards, self._mesh, self._rank) if self._padded else padded
        local = local if self.is_here else local.new_empty(0)
        make: Any = DistributedTensor
        made: DTensor = make(local.contiguous(), self._spec, requires_grad=False)
        return made

    def padded(self, tensor: DTensor) -> Tensor:
        """What the program takes for a DTensor of these placements: its local part, copied only where it is padded."""
        local = tensor.to_local()
        if not self._padded:
            return local
        padded = local.new_zeros(local_shape(tensor.shape, self.shards))
        valid_part(padded, self.shards, self._mesh, self._rank).copy_(local)
        return padded

    def moved(self, tensor: DTensor) -> DTensor:
        """`tensor` in these placements; communicates where it has others."""
        return tensor if self.fits(tensor) else tensor.redistribute(self._device_mesh, self.placements)

    def __str__(self) -> str:
        return placed(self.placements, self._device_mesh)

    def fits(self, tensor: DTensor) -> bool:
        """Whether a DTensor has these placements on this mesh."""
        same_mesh = tensor.device_mesh is self._device_mesh or tensor.device_mesh == self._device_mesh
        return same_mesh and tuple(tensor.placements) == self.placements


def placed_as(tensor: DTensor) -> str:
    """How a DTensor is placed, for an error."""
    return placed(tensor.placements, tensor.device_mesh)


def placed(placements: Sequence[Placement], mesh: DeviceMesh) -> str:
    """Placements and, where these are not all there are, the ranks of a mesh."""
    text = ", ".join(str(each) for each in placements)
    ranks = mesh.mesh.flatten().tolist()
    return text if len(ranks) == dist.get_world_size() else f"{text} on {ranks_are(ranks).rpartition(' ')[0]}"


def placements_of(shards: Sequence[ProgramShard], mesh: RankMesh, without: str | None = None) -> tuple[Placement, ...]:
    """One placement per axis of the mesh but one. Raises RunError E0355 for what DTensor cuts differently.

    DTensor cuts a dim by one axis after the other, in the mesh's order; that is one cut into equal chunks only where
    the axes stand in this order and divide the extent.
    """
    by_axis: dict[str, int] = {}
    for shard in shards:
        cutting = [axis for axis in shard.axes if mesh.sizes[axis] > 1]
        in_order = [axis for axis, _ in mesh.axes if axis in cutting]
        if cutting != in_order or (len(cutting) > 1 and shard.extent % mesh.size(cutting)):
            raise RunError(
                "E0355",
                f"dim {shard.dim} of extent {shard.extent} is cut over {', '.join(shard.axes)}, "
                "which a DTensor cannot say",
                help="cut it over axes in the order of the mesh whose sizes divide it, or run the ranks as threads",
            )
        by_axis.update(dict.fromkeys(shard.axes, shard.dim))
    axes = [axis for axis, _ in mesh.axes if axis != without] or ["rank"]
    return tuple(Shard(by_axis[axis]) if axis in by_axis else Replicate() for axis in axes)


def parameter_shards(program: Program) -> dict[str, tuple[ProgramShard, ...]]:
    """How each parameter is cut, by all of its names."""
    return {
        name: each.shards for each in program.of_kind("parameter") for name in dict.fromkeys([each.name, *each.aliases])
    }


def distribute_parameters(
    module: nn.Module, shards: Mapping[str, Sequence[ProgramShard]], world: World, mesh: RankMesh
) -> dict[str, nn.Parameter]:
    """Replace the module's parameters, in place, by DTensors of which this process holds its part.

    Names, order, ties, `requires_grad` and attributes stay. `shards` is by any name of a parameter; what it does not
    name is replicated. Every process must hold the same full values: RunError E0354 otherwise. Parameters that are
    DTensors already stay as they are. `load_state_dict` takes full tensors as before. Returns those replaced, by name.
    """
    names: dict[int, list[str]] = {}
    full: dict[int, nn.Parameter] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if not isinstance(parameter, DTensor):
            names.setdefault(id(parameter), []).append(name)
            full[id(parameter)] = parameter
    replaced = {names[key][0]: parameter for key, parameter in full.items()}
    _check_equal(replaced, world)
    made = {
        key: distributed(full[key], next((shards[name] for name in aliases if name in shards), ()), world, mesh)
        for key, aliases in names.items()
    }
    fresh = {id(each) for each in made.values()}
    for part in module.modules():
        for key, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) in made:
                part.register_parameter(key, made[id(parameter)])
        if any(id(each) in fresh for each in part.parameters(recurse=False)):
            # torch's public way holds the module weakly, and a compiled model is another object on the same attributes
            part._register_load_state_dict_pre_hook(partial(_take_parts, part._parameters))  # type: ignore[no-untyped-call]
    return replaced


def distributed(
    parameter: Tensor,
    shards: Sequence[ProgramShard],
    world: World,
    mesh: RankMesh,
    stage: tuple[str, int] | None = None,
) -> nn.Parameter:
    """The DTensor parameter of which this process holds its part of the full `parameter`; unfilled if that is meta.

    `stage`: see `Layout`.
    """
    with torch.no_grad():
        layout = Layout(world, mesh, parameter.shape, shards, parameter.dtype, stage)
        own = cut(parameter.detach(), shards, mesh, world.rank)
        own = torch.empty_like(own, device=world.device) if own.is_meta else own.to(world.device, copy=True)
        made = nn.Parameter(layout.dtensor(own), parameter.requires_grad)
    made.__dict__.update(parameter.__dict__)
    return made


def is_here(tensor: Tensor) -> bool:
    """Whether this process has a part of a tensor: not of a DTensor on the ranks of another stage."""
    return not isinstance(tensor, DTensor) or tensor.device_mesh.get_coordinate() is not None


def move_to(tensor: DTensor, mesh: DeviceMesh) -> None:
    """Let `tensor`, in place, stand on `mesh`, some of its ranks; processes that are not there free their part.

    The axes that the smaller mesh lacks must not cut it. Who holds the tensor, such as an optimizer, goes on doing so.
    """
    if not tensor.device_mesh.mesh_dim_names:
        return
    cut_by = dict(zip(tensor.device_mesh.mesh_dim_names, tensor.placements, strict=True))
    placements = tuple(cut_by.get(name, Replicate()) for name in mesh.mesh_dim_names or ())
    if mesh.get_coordinate() is None:
        tensor._local_tensor = tensor._local_tensor.new_empty(0)
    tensor._spec = DTensorSpec(mesh, placements, tensor_meta=tensor._spec.tensor_meta)


def own_window(tensor: DTensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of what this process holds of a DTensor, and where in the whole it begins."""
    return compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)


def _take_parts(parameters: Mapping[str, Tensor | None], state: dict[str, Any], prefix: str, *unused: object) -> None:
    """Before a module loads its state: of full tensors that are given for DTensors, take this process's parts."""
    for name, own in parameters.items():
        given = state.get(prefix + name)
        if not (isinstance(own, DTensor) and isinstance(given, Tensor)) or isinstance(given, DTensor):
            continue
        if given.shape == own.shape:
            given = _own_part(own, given) if is_here(own) else given.new_empty(0)
            local = given.detach().to(own.to_local().device)
            state[prefix + name] = DTensor.from_local(
                local, own.device_mesh, own.placements, run_check=False, shape=own.shape, stride=own.stride()
            )


def _own_part(own: DTensor, given: Tensor) -> Tensor:
    shape, offsets = own_window(own)
    for dim, (start, extent) in enumerate(zip(offsets, shape, strict=True)):
        given = given.narrow(dim, min(start, given.shape[dim]), extent)
    return given


def _check_equal(parameters: Mapping[str, Tensor], world: World) -> None:
    """Raise RunError E0354 unless all processes hold the same values; costs a hash of all of them, once."""
    digests = {name: _digest(each) for name, each in parameters.items() if not each.is_meta}
    together = world.everyones(hashlib.sha256(b"".join(digests.values())).digest())
    if len(set(together)) == 1:
        return
    for name, digest in digests.items():
        each = world.everyones(digest)
        if len(set(each)) > 1:
            differing = [rank for rank, one in enumerate(each) if one != each[0]]
            raise RunError(
                "E0354",
                f"parameter '{name}' has not the same value in all processes: {ranks_are(differing)} unlike rank 0",
                help="seed every process alike (torch.manual_seed) before the model is made, or load the same weights",
            )


def _digest(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).digest()
