"""Parameter placement: which part of each parameter a process holds.

Where ranks are threads the parameters stay as they are. Where ranks are processes they become DTensors before the
optimizer is made, and capture sees fake tensors of the global shapes in their place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

from ...diagnostics import StrettoError
from ...dsl.plan import Plan, check_world
from ...dsl.resolve_stored import resolve_stored_placements
from ...frontend.capture.call import BoundCall
from ...frontend.capture.model_parameters import parameter_infos
from ...frontend.capture.precision import check_parameters
from ...ir.placement import Placement, axes_size, chunk_size
from ...runtime.processes.parameters import device_mesh_of, distribute_parameters, move_to
from ...runtime.processes.world import World, is_launched, join
from ...runtime.program.mesh import RankMesh
from ...runtime.program.program import Program
from ...runtime.program.records import Shard
from ..state.weights import load_weights
from .optimizer_guards import note_moved, note_replaced


def processes() -> int:
    """The number of processes that run this script; 1 where no launcher started it."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def is_first_process() -> bool:
    """Whether this process speaks for all: it is alone, or rank 0."""
    return processes() == 1 or dist.get_rank() == 0


def place_parameters(model: nn.Module, plan: Plan, weights: str | Path | None = None) -> None:
    """Check the plan against the model's parameters; where ranks are processes, keep only this process's part.

    Parameters without values (on the meta device, or lazy) stay as they are unless `weights` names files that fill
    them: a program takes full tensors too. Raises PlanError E0114 to E0117 where the plan does not fit the parameters'
    names, E0123 where a parameter has another dtype than the plan, E0120 where the mesh does not fit the number of
    processes, RunError E0354 where the processes hold different values, and the errors of `load_weights`.
    """
    if any(is_lazy(parameter) for parameter in model.parameters()):
        return
    shards = parameter_shards(model, plan)
    check_parameters(model, plan)
    number = processes()
    if number > 1:
        check_world(plan, number)
        if weights is not None or not any(parameter.is_meta for parameter in model.parameters()):
            with join().call(f"stretto.compile of {type(model).__name__}", lambda: {"plan": str(plan)}):
                note_replaced(distribute_parameters(model, shards, join(), RankMesh(plan.mesh.axes)))
    if weights is not None:
        load_weights(model, weights)


def parameter_shards(model: nn.Module, plan: Plan) -> dict[str, tuple[Shard, ...]]:
    """How the plan shards each parameter, by its first name; the same as in its program."""
    infos = parameter_infos(model)
    shards = {}
    for info, dims in zip(infos, resolve_stored_placements(plan, infos), strict=True):
        axes = enumerate(Placement.of_shards(len(info.shape), dims).dims)
        shards[info.name] = tuple(_shard(plan, dim, over, info.shape[dim]) for dim, over in axes if over)
    return shards


def _shard(plan: Plan, dim: int, axes: tuple[str, ...], extent: int) -> Shard:
    return Shard(dim, axes, chunk_size(extent, axes_size(plan.mesh.axes, axes)), extent)


def move_to_stages(program: Program, parameters: Mapping[str, Tensor]) -> None:
    """Move DTensor parameters, in place, to the ranks of their pipeline stage.

    They are on all ranks until the first program decides the stages. Optimizers keep the same parameter objects.
    """
    moved = []
    for parameter in program.of_kind("parameter"):
        home, tensor = program.owning_stage(parameter), parameters[parameter.name]
        if home is not None and isinstance(tensor, DTensor):
            mesh = device_mesh_of(parameter.shards, program.mesh, join(), home)
            if tensor.device_mesh == device_mesh_of(parameter.shards, program.mesh, join()):
                move_to(tensor, mesh)
                moved.append(tensor)
    note_moved(moved)


@contextmanager
def global_shapes(model: nn.Module, call: BoundCall) -> Iterator[BoundCall]:
    """Inside, the DTensors of the model and of the yielded call are fake tensors of their global shapes."""
    if not any(isinstance(tensor, DTensor) for tensor in chain(model.parameters(), call.tensors)):
        yield call
        return
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes: dict[int, nn.Parameter] = {}
    originals: list[tuple[nn.Module, str, nn.Parameter]] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) not in fakes:
                fakes[id(parameter)] = nn.Parameter(_fake(parameter, mode), parameter.requires_grad)
            originals.append((module, name, parameter))
    try:
        for module, name, parameter in originals:
            module._parameters[name] = fakes[id(parameter)]
        yield replace(
            call,
            tensors=tuple(
                _fake(t, mode).requires_grad_(t.requires_grad) if isinstance(t, DTensor) else t for t in call.tensors
            ),
        )
    finally:
        for module, name, parameter in originals:
            module._parameters[name] = parameter


def _fake(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    with mode:
        return torch.empty(tensor.shape, dtype=tensor.dtype)


def check_same_inputs(call: BoundCall, world: World) -> None:
    """Raise StrettoError E0603 unless all processes pass the same tensors; DTensors (local parts) are not compared."""
    for name, tensor in zip(call.names, call.tensors, strict=True):
        if isinstance(tensor, DTensor):
            continue
        flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digests = world.all_gather_bytes(sha256(flat.numpy().data).digest())
        differing = [str(rank) for rank, digest in enumerate(digests) if digest != digests[0]]
        if differing:
            raise StrettoError(
                "E0603",
                f'input "{name}" differs between processes: rank {", ".join(differing)} and rank 0',
                expected="the same global batch in every process",
                help="seed the data loader alike in every process and use no sampler that splits the data, "
                "or pass stretto.local(batch) for a batch that was split",
            )
