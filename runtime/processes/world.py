"""The processes that run a program together: their groups, device meshes and connections, and checks at the start."""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from hashlib import sha256

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from ...diagnostics import StrettoError
from ..devices import device_of_rank
from ..errors import CollectiveError, RunError, rank_list
from ..program.mesh import RankMesh
from ..program.program import Program
from .calls import CallLog, Describe, no_details
from .device_meshes import Nests, Stage, make_device_mesh
from .diagnosis import StopReason
from .joining import GRACE_S, connect
from .messages import Messages
from .sharing import Sharing
from .watchdog import Store, Watchdog

TIMEOUT_S = 60.0
"""Seconds that a process waits in a collective for late ones; `STRETTO_TIMEOUT_S` changes it."""
_SHOWN = 12
"""Characters of a hash in errors."""
_TAG_BYTES, _MESSAGE_BYTES = 8, 32
_PROGRAMS = 4
"""Programs of one process whose connections are kept apart."""
_OF_CONNECTIONS = ("gloo", "NCCL", "Connection closed", "Connection reset", "imed out", "Broken pipe", "Wait timeout")
"""What the RuntimeErrors of connections have in them, and those of wrong arguments have not."""


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
        self.calls = CallLog()
        self.watchdog = Watchdog(store, self.rank, self.size, timeout_s, self.calls)
        self._store = store
        self._process = os.getpid()
        self._exchanges = 0
        self._groups: dict[tuple[int, tuple[tuple[int, ...], ...]], dist.ProcessGroup] = {}
        self._programs = 0
        self._comparisons = self._own_group()
        self._device_meshes: dict[tuple[RankMesh, Stage | None, Nests], DeviceMesh] = {}

    @contextmanager
    def call(self, what: str, describe: Describe = no_details) -> Iterator[None]:
        """A context for one call of the user that all processes must make; see `calls.py`.

        An error inside is told to those that wait for this process. Before it communicates, or where all processes
        know the same, it may be caught: then all processes can go on.
        """
        self._refuse_fork()
        is_outermost = not self.calls.is_open
        with self.calls.call(what, describe) as opened:
            try:
                yield
            except CollectiveError:
                raise  # the watchdog has reported it
            except BaseException as error:
                if is_outermost:
                    text = f"{type(error).__name__}: {error}" if not isinstance(error, StrettoError) else error.message
                    (self.watchdog.raised if opened.is_agreed else self.watchdog.failed)(text)
                raise

    def start(self, operation: Callable[[], dist.Work | None], where: str, members: Sequence[int]) -> dist.Work:
        """Start a collective of torch's. Raises CollectiveError where the connections are lost already."""
        with self.watched(where, members):
            work = operation()
        assert work is not None, "only a process outside the group gets no work"
        return work

    def run(
        self, operation: Callable[[], dist.Work | None], where: str, group: dist.ProcessGroup | None = None
    ) -> None:
        """Run a collective of a group, else of all. Raises CollectiveError where a process is dead or late."""
        members = range(self.size) if group is None else dist.get_process_group_ranks(group)
        work = self.start(operation, where, members)
        if self.device.type == "cuda":
            work.wait()
        else:
            self.watchdog.wait(work, where, members)

    @contextmanager
    def watched(self, where: str, members: Sequence[int] = ()) -> Iterator[None]:
        """A context in which torch communicates by itself; a lost connection and a timeout become CollectiveErrors."""
        self._refuse_fork()
        self.watchdog.check()
        self.calls.communicate()
        try:
            yield
        except RuntimeError as error:
            lost = self.lost(error, where, members)
            if lost is None:
                raise
            raise lost from error

    def lost(self, error: RuntimeError, where: str, members: Sequence[int] = ()) -> CollectiveError | None:
        """The error for one of torch's that says a connection was lost; None for any other."""
        text = str(error)
        if isinstance(error, StrettoError) or not any(word in text for word in _OF_CONNECTIONS):
            return None
        reason = StopReason.TIMEOUT if "imed out" in text or "Wait timeout" in text else StopReason.LOST
        return self.watchdog.stop(reason, where, members or range(self.size), text)

    def _refuse_fork(self) -> None:
        """Raise RunError E0362 in a child that a process forked: it has the connections, and is no rank."""
        if os.getpid() != self._process:
            raise RunError(
                "E0362",
                f"this process was forked from rank {self.rank} and is no rank of its own",
                help="start such processes by the method 'spawn', or use a copy of the model that is not compiled",
            )

    def _own_group(self) -> dist.ProcessGroup:
        """A group of all processes for comparisons: gloo ends a process that receives more than it expects."""
        with self.watched("connecting the processes"):
            group: dist.ProcessGroup = dist.new_group(timeout=self._limit, backend=self._backend)
        return group

    def next_program(self) -> int:
        """A number for the connections of a program: 0 to 3, which programs share in turns; 0 for NCCL's, on a GPU."""
        self._programs += 1
        return 0 if self.device.type == "cuda" else (self._programs - 1) % _PROGRAMS

    def group(self, mesh: RankMesh, axes: Sequence[str], channel: int = 0) -> dist.ProcessGroup:
        """This process's group over `axes`; each channel has connections of its own.

        All processes must ask for the same groups in the same order.
        """
        partition = sorted({tuple(sorted(mesh.group(rank, axes))) for rank in range(mesh.ranks)})
        key = channel, tuple(partition)
        if key not in self._groups:
            limit, backend = self._limit, self._backend
            with self.watched(f"connecting the groups over {', '.join(axes)}"):
                group_by_members = {
                    members: dist.new_group(list(members), timeout=limit, backend=backend) for members in partition
                }
            self._groups[key] = next(group for members, group in group_by_members.items() if self.rank in members)
        return self._groups[key]

    @cached_property
    def messages(self) -> Messages:
        """The messages of this process. All processes must ask for it for the first time at the same point."""
        ranks = list(range(self.size))
        with self.watched("connecting the stages"):
            groups = [dist.new_group(ranks, timeout=self._limit, backend=self._backend)]
            if self.device.type == "cuda":
                groups.append(dist.new_group(ranks, timeout=self._limit, backend=self._backend))
        return Messages(self.rank, self.device, self.watchdog, (groups[0], groups[-1]))

    @cached_property
    def sharing(self) -> Sharing:
        """What one process does for all."""
        return Sharing(self.rank, self._store, self.watchdog, self.all_gather_bytes, self.calls)

    def close_messages(self) -> None:
        """Close the messages of this process, if it has any."""
        if "messages" in vars(self):
            self.messages.close()

    def device_mesh(self, mesh: RankMesh, stage: Stage | None = None, nests: Nests = ()) -> DeviceMesh:
        """The device mesh of DTensors; a mesh without axes becomes one with an axis of size 1.

        With `stage`, the mesh of the ranks at this coordinate, over all other axes. The axes of each of `nests` become
        one dim of the mesh, row-major in the listed order. All processes must ask for the same meshes in the same
        order, including those that are not in them.
        """
        key = (mesh, stage, nests)
        if key not in self._device_meshes:
            with self.watched("connecting a device mesh"):
                self._device_meshes[key] = make_device_mesh(mesh, stage, nests, self._new_group, self.device.type)
            self._limit_waits(self._device_meshes[key])
        return self._device_meshes[key]

    def _new_group(self, ranks: Sequence[int]) -> dist.ProcessGroup:
        """A group whose members are numbered as listed, for those that are not sorted."""
        group: dist.ProcessGroup = dist.new_group(
            list(ranks), timeout=self._limit, backend=self._backend, sort_ranks=False
        )
        return group

    def _limit_waits(self, mesh: DeviceMesh) -> None:
        """Give the groups of a device mesh our limit: torch makes them with its default of half an hour."""
        if mesh.get_coordinate() is None:
            return
        for group in mesh.get_all_groups():
            if group is not dist.group.WORLD:
                dist.distributed_c10d._set_pg_timeout(self._limit, group)

    def check_same_program(self, program: Program) -> None:
        """Raise RunError E0352 unless the mesh has a rank for each process, E0353 unless all have the same program."""
        if program.mesh.ranks != self.size:
            raise mesh_does_not_fit(program, self.size)
        hashes = self.all_gather_bytes(bytes.fromhex(program.hash))
        if len(set(hashes)) > 1:
            raise RunError(
                "E0353",
                "the processes have different programs",
                notes=tuple((note, None) for note in (*_hash_notes(hashes), *self._what_differs())),
                help="give every process the same program folder, or the same model, plan and versions to compile",
            )

    def _what_differs(self) -> list[str]:
        """What the calls in which the processes are differ in; all processes must ask."""
        details = {key: value for call in self.calls.record().calls[-1:] for key, value in call.details.items()}
        all_details = [json.loads(text) for text in self.all_gather_texts(json.dumps(details))]
        aspects = [key for key in all_details[0] if len({each.get(key, "none") for each in all_details}) > 1]
        return [
            f"rank {rank}: {key} {each.get(key, 'none')}" for key in aspects for rank, each in enumerate(all_details)
        ]

    def all_gather_texts(self, text: str) -> list[str]:
        """The texts of all processes by rank, of any length."""
        keys = [f"stretto/text/{self._exchanges}/{rank}" for rank in range(self.size)]
        self._exchanges += 1
        with self.watched("exchanging texts"):
            self._store.set(keys[self.rank], text)
        self.all_gather_bytes(b"\0")
        return [self._store.get(key).decode() for key in keys]

    def all_gather_bytes(self, message: bytes, where: str = "comparing the processes") -> list[bytes]:
        """The messages of all processes by rank, of at most 32 bytes; all have the same length.

        Each travels with the call that it is for, so that processes in different calls are told so.
        """
        tag = sha256(f"{self.calls.position} {where} {len(message)}".encode()).digest()[:_TAG_BYTES]
        frame = bytearray(tag + message.ljust(_MESSAGE_BYTES, b"\0"))
        own = torch.frombuffer(frame, dtype=torch.uint8).to(self.device)
        received = [torch.empty_like(own) for _ in range(self.size)]
        self.run(lambda: dist.all_gather(received, own, self._comparisons, async_op=True), where)
        frames = [bytes(each.tolist()) for each in received]
        if any(each[:_TAG_BYTES] != tag for each in frames):
            raise self.watchdog.stop(StopReason.LOST, where, range(self.size), "the processes are in different calls")
        self.calls.agree()
        return [each[_TAG_BYTES : _TAG_BYTES + len(message)] for each in frames]

    @property
    def _limit(self) -> timedelta:
        """gloo's timeout, longer than ours, so that the error is ours and names the instruction."""
        return timedelta(seconds=self.timeout_s + GRACE_S)

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
        connect(device, limit_s)
        atexit.register(_leave_at_exit, os.getpid())
    world = World(device, _store(), limit_s)
    _worlds[:] = [world]
    return world


@contextmanager
def call(what: str, describe: Describe = no_details) -> Iterator[None]:
    """`World.call` of the world of this process; nothing where it has none."""
    if not _worlds:
        yield
        return
    with _worlds[0].call(what, describe):
        yield


def lost(error: RuntimeError, where: str) -> CollectiveError | None:
    """`World.lost` of the world of this process; None where it has none."""
    return _worlds[0].lost(error, where) if _worlds else None


@contextmanager
def watched(where: str) -> Iterator[None]:
    """`World.watched` of the world of this process; nothing where it has none."""
    if not _worlds:
        yield
        return
    with _worlds[0].watched(where):
        yield


def leave() -> None:
    """Close the connections that `join` made, before an orderly end of the process."""
    for world in _worlds:
        world.watchdog.close()
        world.close_messages()
    _worlds.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def _leave_at_exit(process: int) -> None:
    """Close what `join` opened: threads of gloo that outlive Python crash the process.

    Not in a forked process, which has no such threads, and not after an error, as a collective may never end then.
    """
    if os.getpid() == process and not hasattr(sys, "last_value"):
        leave()


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
    device = device_of_rank(target)
    if device.type == "cuda":
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
