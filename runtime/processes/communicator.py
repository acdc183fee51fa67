"""The communicator of a rank process: its groups, and collectives started and waited for over `torch.distributed`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

import torch
import torch.distributed as dist
from torch import Tensor

from ..communicator import Handle
from ..counted_rows import checked_counts
from ..errors import RunError
from ..program.mesh import RankMesh
from ..program.program import Program
from .buckets import Bucket, flat, windows
from .messages import Messages
from .torch_collectives import Finish, GroupCollectives, collectives_for
from .world import World


@dataclass(frozen=True)
class _Group:
    """One group of this rank: its members in coordinate order, and their positions in torch's group."""

    members: tuple[int, ...]
    torch_positions: tuple[int, ...] | None
    """By coordinate: the position in torch's group, which is sorted by rank; None where both orders are the same."""
    collectives: GroupCollectives

    def to_torch_order(self, parts: Tensor) -> Tensor:
        """Reorder (members, ..) from coordinate order to the order of torch's group."""
        if self.torch_positions is None:
            return parts
        return parts[sorted(range(len(self.torch_positions)), key=self.torch_positions.__getitem__)]

    def to_coordinate_order(self, parts: Tensor) -> Tensor:
        """Reorder (members, ..) from the order of torch's group to coordinate order."""
        return parts if self.torch_positions is None else parts[list(self.torch_positions)]

    def partners(self, rank: int, shift: int) -> tuple[int, int]:
        """The positions in torch's group of the members `shift` after and `shift` before a rank."""
        own, size = self.members.index(rank), len(self.members)
        positions = self.torch_positions or range(size)
        return positions[(own + shift) % size], positions[(own - shift) % size]


class Phase(IntEnum):
    """The halves of a step, which communicate over connections of their own.

    gloo ends a process that receives more than it expects. So a rank in a backward and one in a forward, or two in
    different programs, must not meet: then they wait, and the watchdog says how their calls differ.
    """

    FORWARD = 0
    BACKWARD = 1


class DistributedCommunicator:
    """The `Communicator` of this process on `mesh`. All processes make one, with the same mesh and axes.

    `program` is a number that tells this program's connections from those of others; `phases` are those that it has.
    """

    def __init__(
        self,
        world: World,
        mesh: RankMesh,
        axes: Sequence[tuple[str, ...]] = (),
        *,
        messages: Messages | None = None,
        program: int = 0,
        phases: Sequence[Phase] = (Phase.FORWARD,),
    ) -> None:
        self.rank = world.rank
        self.phase = Phase.FORWARD
        self._program = program
        self._world = world
        self._mesh = mesh
        self._groups: dict[tuple[Phase, tuple[str, ...]], _Group | None] = {}
        self._messages = messages
        for self.phase in phases:
            for group_axes in axes:
                self._group(group_axes)
        self.phase = Phase.FORWARD

    def coordinate(self, axes: Sequence[str]) -> int:
        """This rank's row-major position in its group over `axes`."""
        return self._mesh.coordinate(self.rank, axes)

    def size(self, axes: Sequence[str]) -> int:
        """The number of ranks in the group over `axes`."""
        return self._mesh.size(axes)

    def all_reduce_start(
        self, tensor: Tensor, axes: Sequence[str], reduce: str, where: str = ""
    ) -> Completed | _Handle:
        """See `Communicator.all_reduce_start`."""
        group = self._group(axes)
        if group is None:
            return Completed(tensor)
        return self._start(group, where, group.collectives.all_reduce, tensor.contiguous(), reduce)

    def all_gather_start(self, tensor: Tensor, axes: Sequence[str], dim: int, where: str = "") -> Completed | _Handle:
        """See `Communicator.all_gather_start`."""
        group = self._group(axes)
        if group is None:
            return Completed(tensor)
        handle = self._start(group, where, group.collectives.all_gather, tensor.contiguous())
        return handle.then(lambda parts: _concatenated(group.to_coordinate_order(parts), dim % tensor.dim()))

    def reduce_scatter_start(
        self, tensor: Tensor, axes: Sequence[str], dim: int, reduce: str, where: str = ""
    ) -> Completed | _Handle:
        """See `Communicator.reduce_scatter_start`."""
        group = self._group(axes)
        if group is None:
            return Completed(tensor)
        parts = self._parts(group, tensor, dim, where or "reduce_scatter")
        return self._start(group, where, group.collectives.reduce_scatter, parts, reduce)

    def all_to_all_start(
        self, tensor: Tensor, axes: Sequence[str], split_dim: int, concat_dim: int, where: str = ""
    ) -> Completed | _Handle:
        """See `Communicator.all_to_all_start`."""
        group = self._group(axes)
        if group is None:
            return Completed(tensor)
        parts = self._parts(group, tensor, split_dim, where or "all_to_all")
        handle = self._start(group, where, group.collectives.all_to_all, parts)
        return handle.then(
            lambda received: _concatenated(group.to_coordinate_order(received), concat_dim % tensor.dim())
        )

    def permute_start(self, tensor: Tensor, axes: Sequence[str], shift: int, where: str = "") -> Completed | _Handle:
        """See `Communicator.permute_start`."""
        group = self._group(axes)
        if group is None or shift % len(group.members) == 0:
            return Completed(tensor)
        to, source = group.partners(self.rank, shift)
        return self._start(group, where, group.collectives.permute, tensor.contiguous(), to, source)

    def all_to_all_rows_start(
        self,
        tensor: Tensor,
        axes: Sequence[str],
        bound: int,
        send_counts: Tensor,
        receive_counts: Tensor,
        where: str = "",
    ) -> Completed | _Handle:
        """See `Communicator.all_to_all_rows_start`."""
        sent, received = checked_counts(tensor, bound, send_counts, receive_counts, self.rank, where)
        result = tensor.new_zeros(bound, *tensor.shape[1:])
        rows = tensor[: sum(sent)]
        group = self._group(axes)
        if group is None:
            result[: len(rows)] = rows
            return Completed(result)
        positions = group.torch_positions or range(len(sent))
        if group.torch_positions is not None:
            rows = torch.cat(
                [
                    each
                    for _, each in sorted(zip(positions, torch.split_with_sizes(rows, sent), strict=True), key=_first)
                ]
            )
        in_order = [[count for _, count in sorted(zip(positions, counts, strict=True))] for counts in (sent, received)]
        handle = self._start(group, where, group.collectives.all_to_all_rows, rows.contiguous(), result, *in_order)
        if group.torch_positions is None:
            return handle
        return handle.then(lambda came: _in_coordinate_order(came, received, positions))

    def all_reduce_coalesced_start(
        self, tensors: Sequence[Tensor], axes: Sequence[str], reduce: str, where: str = ""
    ) -> Sequence[Handle]:
        """See `Communicator.all_reduce_coalesced_start`. The results are windows of one tensor."""
        group = self._group(axes)
        if group is None:
            return [Completed(tensor) for tensor in tensors]
        shapes = [tensor.shape for tensor in tensors]
        handle = self._start(group, where, group.collectives.all_reduce, flat(tensors), reduce)
        return Bucket(handle, lambda total: windows(total, shapes)).handles(len(tensors))

    def all_gather_coalesced_start(
        self, tensors: Sequence[Tensor], axes: Sequence[str], dims: Sequence[int], where: str = ""
    ) -> Sequence[Handle]:
        """See `Communicator.all_gather_coalesced_start`."""
        group = self._group(axes)
        if group is None:
            return [Completed(tensor) for tensor in tensors]
        shapes = [tensor.shape for tensor in tensors]
        handle = self._start(group, where, group.collectives.all_gather, flat(tensors))

        def joined(gathered: Tensor) -> list[Tensor]:
            parts = windows(group.to_coordinate_order(gathered), shapes)
            return [_concatenated(part, dim % len(shape)) for part, dim, shape in zip(parts, dims, shapes, strict=True)]

        return Bucket(handle, joined).handles(len(shapes))

    def reduce_scatter_coalesced_start(
        self, tensors: Sequence[Tensor], axes: Sequence[str], dims: Sequence[int], reduce: str, where: str = ""
    ) -> Sequence[Handle]:
        """See `Communicator.reduce_scatter_coalesced_start`. The results are windows of one tensor."""
        group = self._group(axes)
        if group is None:
            return [Completed(tensor) for tensor in tensors]
        parts = [
            self._parts(group, tensor, dim, where or "reduce_scatter")
            for tensor, dim in zip(tensors, dims, strict=True)
        ]
        shapes = [part.shape[1:] for part in parts]
        joined = torch.cat([part.flatten(1) for part in parts], 1)
        handle = self._start(group, where, group.collectives.reduce_scatter, joined, reduce)
        return Bucket(handle, lambda total: windows(total, shapes)).handles(len(shapes))

    def send(self, tensor: Tensor, axis: str, peer: int, where: str = "") -> None:
        """See `Communicator.send`."""
        to = self._mesh.peer(self.rank, axis, peer)
        with torch.no_grad(), self._world.watched(where, (self.rank, to)):
            self._checked_messages().send(tensor, to, where, self._program)

    def receive_start(self, axis: str, peer: int, size: Sequence[int], dtype: torch.dtype, where: str = "") -> Handle:
        """See `Communicator.receive_start`."""
        source = self._mesh.peer(self.rank, axis, peer)
        with self._world.watched(where, (source, self.rank)):
            return self._checked_messages().receive(source, size, dtype, where, self._program)

    @contextmanager
    def step(self) -> Iterator[None]:
        """A context at whose end all messages sent inside were received, so that their tensors may be written to."""
        try:
            yield
            if self._messages is not None:
                self._messages.wait_until_received()
        finally:
            if self._messages is not None:
                self._messages.discard()

    def close(self) -> None:
        """Do nothing: groups belong to the process and stay for the next program."""

    def _checked_messages(self) -> Messages:
        assert self._messages is not None, "a session of a pipelined program passes messages"
        return self._messages

    def _group(self, axes: Sequence[str]) -> _Group | None:
        key = self.phase, tuple(axes)
        if key not in self._groups:
            members = self._mesh.group(self.rank, key[1])
            self._groups[key] = self._connect(key[1], members) if len(members) > 1 else None
        return self._groups[key]

    def _connect(self, axes: tuple[str, ...], members: tuple[int, ...]) -> _Group:
        order = sorted(members)
        torch_positions = tuple(order.index(rank) for rank in members)
        group = self._world.group(self._mesh, axes, 2 * self._program + self.phase)
        connected = collectives_for(group, torch_positions, self._world.device)
        return _Group(members, None if list(members) == order else torch_positions, connected)

    def _parts(self, group: _Group, tensor: Tensor, dim: int, where: str) -> Tensor:
        """(members, ..): the chunks of `tensor` along `dim`, in the order of torch's group."""
        size = len(group.members)
        if tensor.shape[dim] % size:
            raise RunError(
                "E0324",
                f"rank {self.rank}: {where} cannot split dim {dim} of {list(tensor.shape)} into {size} equal chunks",
                help="pad the dim to a multiple of the group's size",
            )
        dim %= tensor.dim()
        parts = tensor.reshape([*tensor.shape[:dim], size, tensor.shape[dim] // size, *tensor.shape[dim + 1 :]])
        return group.to_torch_order(parts.movedim(dim, 0)).contiguous()

    def _start(
        self, group: _Group, where: str, collective: Callable[..., tuple[dist.Work, Finish]], *arguments: object
    ) -> _Handle:
        with torch.no_grad(), self._world.watched(where, group.members):
            work, finish = collective(*arguments)
        return _Handle(self._world, group.members, where, work, finish)


def _first(pair: tuple[int, Tensor]) -> int:
    return pair[0]


def _in_coordinate_order(came: Tensor, received: Sequence[int], positions: Sequence[int]) -> Tensor:
    """Rows that came in the order of torch's group, in coordinate order: `received[i]` from the member at i."""
    by_position = dict(sorted(zip(positions, received, strict=True)))
    parts = dict(zip(by_position, torch.split_with_sizes(came[: sum(received)], [*by_position.values()]), strict=True))
    return torch.cat([*(parts[position] for position in positions), came[sum(received) :]])


class Completed:
    """The handle of a collective over a group of one rank, which does nothing."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def wait(self) -> Tensor:
        """The tensor itself."""
        return self._tensor


class _Handle:
    """The handle of a collective of this process."""

    def __init__(self, world: World, members: tuple[int, ...], where: str, work: dist.Work, finish: Finish) -> None:
        self._world = world
        self._members = members
        self._where = where
        self._work = work
        self._finish = finish

    def then(self, shape: Callable[[Tensor], Tensor]) -> _Handle:
        """This handle, with `shape` applied to its result."""
        finish = self._finish
        self._finish = lambda: shape(finish())
        return self

    def wait(self) -> Tensor:
        """This rank's result. Raises CollectiveError where a member is dead or late."""
        if self._world.device.type == "cuda":
            self._work.wait()  # orders streams only; NCCL has a watchdog of its own
        else:
            self._world.watchdog.wait(self._work, self._where, self._members)
        with torch.no_grad():
            return self._finish()


def groups_of(program: Program) -> tuple[tuple[str, ...], ...]:
    """The tuples of axes over which a program has collectives, sorted."""
    groups = {
        tuple(str(axis) for axis in axes)
        for function in program.functions.values()
        for instruction in function.code
        if isinstance(axes := instruction.kwargs.get("axes"), list | tuple) and instruction.op.startswith("comm.")
    }
    return tuple(sorted(groups))


def _concatenated(parts: Tensor, dim: int) -> Tensor:
    """(members, *shape) to one tensor: the members' parts concatenated along `dim` of shape."""
    if dim == 0:
        return parts.flatten(0, 1)
    return parts.movedim(0, dim).flatten(dim, dim + 1)
