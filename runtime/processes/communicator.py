"""Collectives between ranks that are processes: `torch.distributed`, gloo on CPUs and NCCL on CUDA devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..communicator import Handle
from ..errors import RunError
from ..program.mesh import RankMesh
from ..program.program import Program
from .messages import Messages
from .torch_collectives import Finish, Wire, wire
from .world import World


@dataclass(frozen=True)
class _Group:
    """One group of this rank: its ranks in coordinate order, and where each of them stands in torch's group."""

    members: tuple[int, ...]
    places: tuple[int, ...] | None
    """places[coordinate] is the position in torch's group, which is sorted by rank; None where these are the same."""
    wire: Wire

    def sent(self, parts: Tensor) -> Tensor:
        """(members, ..) from coordinate order to the order of torch's group."""
        if self.places is None:
            return parts
        return parts[sorted(range(len(self.places)), key=self.places.__getitem__)]

    def received(self, parts: Tensor) -> Tensor:
        """(members, ..) from the order of torch's group to coordinate order."""
        return parts if self.places is None else parts[list(self.places)]


class DistributedCommunicator:
    """This process's `Communicator` on `mesh`. Every process makes its own, for the same mesh and axes."""

    def __init__(
        self, world: World, mesh: RankMesh, axes: Sequence[tuple[str, ...]] = (), *, messages: Messages | None = None
    ) -> None:
        self.rank = world.rank
        self._world = world
        self._mesh = mesh
        self._groups: dict[tuple[str, ...], _Group | None] = {}
        self._messages = messages
        for each in axes:
            self._group(each)

    def coordinate(self, axes: Sequence[str]) -> int:
        """This rank's row-major position in its group over `axes`."""
        return self._mesh.coordinate(self.rank, axes)

    def size(self, axes: Sequence[str]) -> int:
        """How many ranks the group over `axes` has."""
        return self._mesh.size(axes)

    def all_reduce_start(self, tensor: Tensor, axes: Sequence[str], reduce: str, where: str = "") -> Ended | _Handle:
        """See `Communicator.all_reduce_start`."""
        group = self._group(axes)
        if group is None:
            return Ended(tensor)
        return self._start(group, where, group.wire.all_reduce, tensor.contiguous(), reduce)

    def all_gather_start(self, tensor: Tensor, axes: Sequence[str], dim: int, where: str = "") -> Ended | _Handle:
        """See `Communicator.all_gather_start`."""
        group = self._group(axes)
        if group is None:
            return Ended(tensor)
        handle = self._start(group, where, group.wire.all_gather, tensor.contiguous())
        return handle.then(lambda parts: _joined(group.received(parts), dim % tensor.dim()))

    def reduce_scatter_start(
        self, tensor: Tensor, axes: Sequence[str], dim: int, reduce: str, where: str = ""
    ) -> Ended | _Handle:
        """See `Communicator.reduce_scatter_start`."""
        group = self._group(axes)
        if group is None:
            return Ended(tensor)
        parts = self._parts(group, tensor, dim, where or "reduce_scatter")
        return self._start(group, where, group.wire.reduce_scatter, parts, reduce)

    def all_to_all_start(
        self, tensor: Tensor, axes: Sequence[str], split_dim: int, concat_dim: int, where: str = ""
    ) -> Ended | _Handle:
        """See `Communicator.all_to_all_start`."""
        group = self._group(axes)
        if group is None:
            return Ended(tensor)
        parts = self._parts(group, tensor, split_dim, where or "all_to_all")
        handle = self._start(group, where, group.wire.all_to_all, parts)
        return handle.then(lambda received: _joined(group.received(received), concat_dim % tensor.dim()))

    def send(self, tensor: Tensor, axis: str, peer: int, where: str = "") -> None:
        """See `Communicator.send`."""
        with torch.no_grad():
            self._connected().send(tensor, self._mesh.peer(self.rank, axis, peer), where)

    def receive_start(self, axis: str, peer: int, size: Sequence[int], dtype: torch.dtype, where: str = "") -> Handle:
        """See `Communicator.receive_start`."""
        return self._connected().receive(self._mesh.peer(self.rank, axis, peer), size, dtype, where)

    @contextmanager
    def step(self) -> Iterator[None]:
        """At its end all that was sent inside is with its receivers: tensors that were sent may be written to."""
        try:
            yield
            if self._messages is not None:
                self._messages.finish()
        finally:
            if self._messages is not None:
                self._messages.forget()

    def close(self) -> None:
        """Groups belong to the process and stay for the next program."""

    def _connected(self) -> Messages:
        assert self._messages is not None, "who runs a program that sends has connected the processes"
        return self._messages

    def _group(self, axes: Sequence[str]) -> _Group | None:
        key = tuple(axes)
        if key not in self._groups:
            members = self._mesh.group(self.rank, key)
            self._groups[key] = self._connect(key, members) if len(members) > 1 else None
        return self._groups[key]

    def _connect(self, axes: tuple[str, ...], members: tuple[int, ...]) -> _Group:
        order = sorted(members)
        places = tuple(order.index(rank) for rank in members)
        connected = wire(self._world.group(self._mesh, axes), places, self._world.device)
        return _Group(members, None if list(members) == order else places, connected)

    def _parts(self, group: _Group, tensor: Tensor, dim: int, where: str) -> Tensor:
        """(members, ..): the chunks of `tensor` along `dim`, in the order of torch's group."""
        size = len(group.members)
        if tensor.shape[dim] % size:
            raise RunError(
                "E0324",
                f"rank {self.rank}: {where} cuts dim {dim} of {list(tensor.shape)} into {size} chunks",
                help="pad the dim to a multiple of the group's size",
            )
        dim %= tensor.dim()
        parts = tensor.reshape([*tensor.shape[:dim], size, tensor.shape[dim] // size, *tensor.shape[dim + 1 :]])
        return group.sent(parts.movedim(dim, 0)).contiguous()

    def _start(
        self, group: _Group, where: str, collective: Callable[..., tuple[dist.Work, Finish]], *given: object
    ) -> _Handle:
        with torch.no_grad():
            work, finish = collective(*given)
        return _Handle(self._world, group.members, where, work, finish)


class Ended:
    """A collective of one rank: nothing was to be done."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def wait(self) -> Tensor:
        """The tensor itself."""
        return self._tensor


class _Handle:
    """A collective of this process under way."""

    def __init__(self, world: World, members: tuple[int, ...], where: str, work: dist.Work, finish: Finish) -> None:
        self._world = world
        self._members = members
        self._where = where
        self._work = work
        self._finish = finish

    def then(self, shape: Callable[[Tensor], Tensor]) -> _Handle:
        """The same collective, whose result goes through `shape`."""
        finish = self._finish
        self._finish = lambda: shape(finish())
        return self

    def wait(self) -> Tensor:
        """This rank's result; raises CollectiveError when a member is gone or does not come."""
        if self._world.device.type == "cuda":
            self._work.wait()  # orders streams only; NCCL's own watchdog sees to the rest
        else:
            self._world.watchdog.wait(self._work, self._where, self._members)
        with torch.no_grad():
            return self._finish()


def groups_of(program: Program) -> tuple[tuple[str, ...], ...]:
    """The sets of axes that a program communicates over, in a fixed order."""
    found = {
        tuple(str(axis) for axis in axes)
        for function in program.functions.values()
        for each in function.code
        if isinstance(axes := each.kwargs.get("axes"), list | tuple) and each.op.startswith("comm.")
    }
    return tuple(sorted(found))


def _joined(parts: Tensor, dim: int) -> Tensor:
    """(members, *shape) with the members' parts one after the other along `dim` of shape."""
    if dim == 0:
        return parts.flatten(0, 1)
    return parts.movedim(0, dim).flatten(dim, dim + 1)
