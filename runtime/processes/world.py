"""The processes that run a program together: who they are, their groups, what they must agree on before they start."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..errors import RunError
from ..program.mesh import RankMesh
from ..program.program import Program
from .messages import Messages
from .watchdog import Store, Watchdog, name

TIMEOUT_S = 60.0
"""How long a process waits in a collective for others that live but do not come; `STRETTO_TIMEOUT_S` changes it."""
_SHOWN = 12
"""Characters of a hash that errors show."""


def is_launched() -> bool:
    """Whether this process is one of several, started by torchrun or another launcher (or by `init_process_group`)."""
    return dist.is_initialized() or {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


class World:
    """All processes of one run. Make it once per process, with `join`."""

    def __init__(self, device: torch.device, store: Store, timeout_s: float) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.device = device
        self.timeout_s = timeout_s
        self.process_group = dist.group.WORLD
        self.watchdog = Watchdog(store, self.rank, self.size, timeout_s)
        self._groups: dict[tuple[tuple[int, ...], ...], dist.ProcessGroup] = {}
        self._device_meshes: dict[tuple[RankMesh, tuple[str, int] | None], DeviceMesh] = {}

    def group(self, mesh: RankMesh, axes: Sequence[str]) -> dist.ProcessGroup:
        """This process's group over `axes`. Every process must ask for the same groups in the same order."""
        parts = sorted({tuple(sorted(mesh.group(rank, axes))) for rank in range(mesh.ranks)})
        key = tuple(parts)
        if key not in self._groups:
            limit, backend = self._limit, self._backend
            made = {members: dist.new_group(list(members), timeout=limit, backend=backend) for members in parts}
            self._groups[key] = next(group for members, group in made.items() if self.rank in members)
        return self._groups[key]

    @cached_property
    def messages(self) -> Messages:
        """What this process sends to others and receives; every process must first ask for it at the same point."""
        everyone = list(range(self.size))
        made = [dist.new_group(everyone, timeout=self._limit, backend=self._backend)]
        if self.device.type == "cuda":
            made.append(dist.new_group(everyone, timeout=self._limit, backend=self._backend))
        return Messages(self.rank, self.device, self.watchdog, (made[0], made[-1]))

    def close_messages(self) -> None:
        """End what waits for messages, if any were ever sent or received."""
        if "messages" in vars(self):
            self.messages.close()

    def device_mesh(self, mesh: RankMesh, stage: tuple[str, int] | None = None) -> DeviceMesh:
        """The mesh that DTensors stand on; a mesh without axes becomes one with an axis of size 1.

        `stage` (an axis and a coordinate on it) asks for the mesh of the ranks there, over all other axes. Every
        process must ask for the same meshes in the same order, whether it stands on them or not.
        """
        key = (mesh, stage)
        if key not in self._device_meshes:
            self._device_meshes[key] = self._made(mesh, stage)
        return self._device_meshes[key]

    def _made(self, mesh: RankMesh, stage: tuple[str, int] | None) -> DeviceMesh:
        axes = mesh.axes if stage is None else tuple(each for each in mesh.axes if each[0] != stage[0])
        sizes = tuple(size for _, size in axes) or (1,)
        names = tuple(axis for axis, _ in axes) or ("rank",)
        if stage is None:
            return init_device_mesh(self.device.type, sizes, mesh_dim_names=names)
        ranks = [rank for rank in range(mesh.ranks) if mesh.coordinates(rank)[stage[0]] == stage[1]]
        return DeviceMesh(self.device.type, torch.tensor(ranks).reshape(sizes), mesh_dim_names=names)

    def agree(self, program: Program) -> None:
        """Raise RunError unless the mesh has as many ranks as there are processes, and all hold the same program."""
        if program.mesh.ranks != self.size:
            raise mesh_does_not_fit(program, self.size)
        hashes = self.everyones(bytes.fromhex(program.hash))
        if len(set(hashes)) > 1:
            raise RunError(
                "E0353",
                "the processes hold different programs",
                notes=tuple((note, None) for note in _who_holds(hashes)),
                help="compile once and give every process the same folder, or the same model, plan and versions",
            )

    def everyones(self, message: bytes) -> list[bytes]:
        """The messages of all processes, which have the same length, by rank."""
        own = torch.frombuffer(bytearray(message), dtype=torch.uint8).to(self.device)
        each = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(each, own)
        return [bytes(message.tolist()) for message in each]

    @property
    def _limit(self) -> timedelta:
        """gloo's own limit comes after ours, so that it is our error which names the instruction."""
        return timedelta(seconds=self.timeout_s + 5)

    @property
    def _backend(self) -> str:
        return "nccl" if self.device.type == "cuda" else "gloo"


_worlds: list[World] = []
"""The world of this process, once joined: connections belong to the process, not to any object of its user."""


def join(target: str = "cpu", timeout_s: float | None = None) -> World:
    """The world of this process, made at the first call: from the process group, or from torchrun's environment.

    `target` "cuda" takes the device of LOCAL_RANK. Every process must call it at the same point.
    """
    for world in _worlds:
        if world.process_group is dist.group.WORLD:
            return world
        world.watchdog.close()
    device = _device(target)
    limit_s = float(os.environ.get("STRETTO_TIMEOUT_S", TIMEOUT_S)) if timeout_s is None else timeout_s
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, device_id=device if device.type == "cuda" else None)
    world = World(device, _store(), limit_s)
    _worlds[:] = [world]
    return world


def leave() -> None:
    """End what `join` made; for processes that end in good order."""
    for world in _worlds:
        world.watchdog.close()
        world.close_messages()
    _worlds.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def mesh_does_not_fit(program: Program, processes: int) -> RunError:
    """The error for a mesh that has more or fewer ranks than there are processes."""
    axes = ", ".join(f"{axis}={size}" for axis, size in program.manifest.mesh)
    return RunError(
        "E0352",
        f"the program is for a mesh ({axes}) of {program.mesh.ranks} ranks, but there are {processes} processes",
        help=f"start {program.mesh.ranks} processes (torchrun --nproc-per-node {program.mesh.ranks}), "
        "or compile for another mesh",
    )


def _device(target: str) -> torch.device:
    if not target.startswith("cuda"):
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _store() -> Store:
    """The store of the default process group, which torch has no public name for."""
    store: Store = dist.distributed_c10d._get_default_store()
    return store


def _who_holds(hashes: Sequence[bytes]) -> list[str]:
    return [
        f"{name([rank for rank, each in enumerate(hashes) if each == one])} at {one.hex()[:_SHOWN]}"
        for one in dict.fromkeys(hashes)
    ]
