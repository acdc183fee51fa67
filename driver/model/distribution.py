"""The model's parameters on the ranks: where the plan puts them, and what each process holds when ranks are processes.

With ranks as threads the parameters stay as they are. With ranks as processes they become DTensors before the first
optimizer sees them, and a model is captured through stand-ins that have their global shapes and no memory.
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
from ...dsl.resolve import resolve_parameters
from ...frontend.capture.call import BoundCall
from ...frontend.capture.model_parameters import parameter_infos
from ...frontend.capture.precision import check_parameters
from ...ir.placement import axes_size, chunk_size
from ...runtime.processes.parameters import distribute_parameters, move_to
from ...runtime.processes.world import World, is_launched, join
from ...runtime.program.mesh import RankMesh
from ...runtime.program.program import Program
from ...runtime.program.records import Shard
from ..state.weights import load_weights
from .optimizer_guards import note_moved, note_replaced


def processes() -> int:
    """How many processes run this script together; 1 where no launcher started it."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def place_parameters(model: nn.Module, plan: Plan, weights: str | Path | None = None) -> None:
    """Check the plan against the model's parameters, and where ranks are processes keep this one's part of them.

    Parameters without values (on the meta device, or lazy) are left for later, unless `weights` names files that fill
    them: a program takes full ones too. Raises PlanError E0114 to E0117 where plan and names do not fit, E0123 where
    a parameter's dtype is not the plan's, E0120 where mesh and processes do not fit, RunError E0354 where the processes
    hold different values, and what `load_weights` raises.
    """
    if any(is_lazy(each) for each in model.parameters()):
        return
    shards = parameter_shards(model, plan)
    check_parameters(model, plan)
    number = processes()
    if number > 1:
        check_world(plan, number)
        if weights is not None or not any(each.is_meta for each in model.parameters()):
            note_replaced(distribute_parameters(model, shards, join(), RankMesh(plan.mesh.axes)))
    if weights is not None:
        load_weights(model, weights)


def parameter_shards(model: nn.Module, plan: Plan) -> dict[str, tuple[Shard, ...]]:
    """How the plan cuts each parameter, by its first name; the same as its program will say."""
    infos = parameter_infos(model)
    shards = {}
    for info, found in zip(infos, resolve_parameters(plan, infos), strict=True):
        cut = {dim: tuple(a for a in plan.mesh.names if found.dims.get(a) == dim) for dim in range(len(info.shape))}
        shards[info.name] = tuple(_shard(plan, dim, axes, info.shape[dim]) for dim, axes in cut.items() if axes)
    return shards


def _shard(plan: Plan, dim: int, axes: tuple[str, ...], extent: int) -> Shard:
    return Shard(dim, axes, chunk_size(extent, axes_size(plan.mesh.axes, axes)), extent)


def move_to_stages(program: Program, parameters: Mapping[str, Tensor]) -> None:
    """Let DTensor parameters, in place, stand on the ranks of their stage, where a pipeline gives them one.

    They stand on all ranks until the first program tells the stages; optimizers hold the same parameters after it.
    """
    moved = []
    for each in program.of_kind("parameter"):
        home, tensor = program.owning_stage(each), parameters[each.name]
        if home is not None and isinstance(tensor, DTensor):
            mesh = join().device_mesh(program.mesh, home)
            if tensor.device_mesh == join().device_mesh(program.mesh):
                move_to(tensor, mesh)
                moved.append(tensor)
    note_moved(moved)


@contextmanager
def global_shapes(model: nn.Module, call: BoundCall) -> Iterator[BoundCall]:
    """Inside, the model's DTensors are fake tensors of their global shapes, and so are those of the call it gives."""
    if not any(isinstance(each, DTensor) for each in chain(model.parameters(), call.tensors)):
        yield call
        return
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, nn.Parameter] = {}
    kept: list[tuple[nn.Module, str, nn.Parameter]] = []
    for part in model.modules():
        for name, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) not in made:
                made[id(parameter)] = nn.Parameter(_fake(parameter, mode), parameter.requires_grad)
            kept.append((part, name, parameter))
    try:
        for part, name, parameter in kept:
            part._parameters[name] = made[id(parameter)]
        yield replace(
            call,
            tensors=tuple(
                _fake(t, mode).requires_grad_(t.requires_grad) if isinstance(t, DTensor) else t for t in call.tensors
            ),
        )
    finally:
        for part, name, parameter in kept:
            part._parameters[name] = parameter


def _fake(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    with mode:
        return torch.empty(tensor.shape, dtype=tensor.dtype)


def check_same_inputs(call: BoundCall, world: World) -> None:
    """Raise StrettoError E0603 unless all processes pass the same tensors; DTensors are parts, and not compared."""
    for name, tensor in zip(call.names, call.tensors, strict=True):
        if isinstance(tensor, DTensor):
            continue
        flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        each = world.all_gather_bytes(sha256(flat.numpy().data).digest())
        differing = [str(rank) for rank, digest in enumerate(each) if digest != each[0]]
        if differing:
            raise StrettoError(
                "E0603",
                f'input "{name}" is not the same in all processes: rank {", ".join(differing)} unlike rank 0',
                expected="the same global batch in every process, which takes its part of it",
                help="seed the data loading of every process alike and use no sampler that splits the data, "
                "or say stretto.local(batch) of one that was split",
            )
