"""The processes that run a program together: their groups, device meshes and connections, and checks at the start."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..errors import RunError, rank_list
from ..program.mesh import RankMesh
from ..program.program import Program
from .messages import Messages
from .watchdog import Store, Watchdog

TIMEOUT_S = 60.0
"""Seconds that a process waits in a collective for late ones; `STRETTO_TIMEOUT_S` changes it."""
_SHOWN = 12
"""Characters of a hash in errors."""


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
        """This process's group over `axes`. All processes must ask for the same groups in the same order."""
        partition = sorted({tuple(sorted(mesh.group(rank, axes))) for rank in range(mesh.ranks)})
        key = tuple(partition)
        if key not in self._groups:
            limit, backend = self._limit, self._backend
            group_by_members = {
                members: dist.new_group(list(members), timeout=limit, backend=backend) for members in partition
            }
            self._groups[key] = next(group for members, group in group_by_members.items() if self.rank in members)
        return self._groups[key]

    @cached_property
    def messages(self) -> Messages:
        """The messages of this process. All processes must ask for it for the first time at the same point."""
        ranks = list(range(self.size))
        groups = [dist.new_group(ranks, timeout=self._limit, backend=self._backend)]
        if self.device.type == "cuda":
            groups.append(dist.new_group(ranks, timeout=self._limit, backend=self._backend))
        return Messages(self.rank, self.device, self.watchdog, (groups[0], groups[-1]))

    def close_messages(self) -> None:
        """Close the messages of this process, if it has any."""
        if "messages" in vars(self):
            self.messages.close()

    def device_mesh(self, mesh: RankMesh, stage: tuple[str, int] | None = None) -> DeviceMesh:
        """The device mesh of DTensors; a mesh without axes becomes one with an axis of size 1.

        With `stage`, (axis, coordinate), the mesh of the ranks at this coordinate, over all other axes. All processes
        must ask for the same meshes in the same order, including those that are not in them.
        """
        key = (mesh, stage)
        if key not in self._device_meshes:
            self._device_meshes[key] = self._make_device_mesh(mesh, stage)
        return self._device_meshes[key]

    def _make_device_mesh(self, mesh: RankMesh, stage: tuple[str, int] | None) -> DeviceMesh:
        axes = tuple((axis, size) for axis, size in mesh.axes if stage is None or axis != stage[0])
        sizes = tuple(size for _, size in axes) or (1,)
        names = tuple(axis for axis, _ in axes) or ("rank",)
        if stage is None:
            return init_device_mesh(self.device.type, sizes, mesh_dim_names=names)
        ranks = [rank for rank in range(mesh.ranks) if mesh.coordinates(rank)[stage[0]] == stage[1]]
        return DeviceMesh(self.device.type, torch.tensor(ranks).reshape(sizes), mesh_dim_names=names)

    def check_same_program(self, program: Program) -> None:
        """Raise RunError E0352 unless the mesh has a rank for each process, E0353 unless all have the same program."""
        if program.mesh.ranks != self.size:
            raise mesh_does_not_fit(program, self.size)
        hashes = self.all_gather_bytes(bytes.fromhex(program.hash))
        if len(set(hashes)) > 1:
            raise RunError(
                "E0353",
                "the processes have different programs",
                notes=tuple((note, None) for note in _hash_notes(hashes)),
                help="give every process the same program folder, or the same model, plan and versions to compile",
            )

    def all_gather_bytes(self, message: bytes) -> list[bytes]:
        """The messages of all processes by rank; all have the same length."""
        own = torch.frombuffer(bytearray(message), dtype=torch.uint8).to(self.device)
        received = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(received, own)
        return [bytes(message.tolist()) for message in received]

    @property
    def _limit(self) -> timedelta:
        """gloo's timeout, longer than ours, so that the error is ours and names the instruction."""
        return timedelta(seconds=self.timeout_s + 5)

    @property
    def _backend(self) -> str:
        return "nccl" if self.device.type == "cuda" else "gloo"


_worlds: list[World] = []
"""The world of this process, once joined. Connections belong to the process, not to an object of the user."""


def join(target: str = "cpu", timeout_s: float | None = None) -> World:
    """The world of this process; the first call makes it from the process group or from torchrun's environment.

    `target` "cuda" takes the device of LOCAL_RANK. All processes must call it at the same point.
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
    """Close the connections that `join` made, before an orderly end of the process."""
    for world in _worlds:
        world.watchdog.close()
        world.close_messages()
    _worlds.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def mesh_does_not_fit(program: Program, processes: int) -> RunError:
    """The error for a mesh that has not as many ranks as there are processes."""
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
    """The store of the default process group, for which torch has no public name."""
    store: Store = dist.distributed_c10d._get_default_store()
    return store


def _hash_notes(hashes: Sequence[bytes]) -> list[str]:
    """One note for each distinct hash, with the ranks that have it."""
    notes = []
    for distinct in dict.fromkeys(hashes):
        ranks = [rank for rank, own in enumerate(hashes) if own == distinct]
        notes.append(f"{rank_list(ranks)}: hash {distinct.hex()[:_SHOWN]}")
    return notes
