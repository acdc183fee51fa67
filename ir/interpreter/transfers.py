"""What ranks hand each other: of each pair of ranks, what one sends first the other takes first."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass

import torch
from torch import Tensor

from .code import Step
from .errors import MISMATCH, NO_MEANING, NOT_TAKEN, DeadlockError, InterpreterError, Stuck
from .grid import Grid

RECEIVE_HELP = "let a rank send what another waits for before it waits itself"


@dataclass(frozen=True)
class Sent:
    """A tensor on its way."""

    step: Step
    tensor: Tensor


@dataclass(eq=False)
class Parcel:
    """What one rank gets of another, once."""

    source: int
    rank: int
    step: Step
    """Where it was asked for."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    tensor: Tensor | None = None
    is_taken: bool = False

    @property
    def is_ready(self) -> bool:
        return self.tensor is not None

    @property
    def missing(self) -> tuple[int, ...]:
        """The ranks that must come before it is ready."""
        return () if self.is_ready else (self.source,)

    def take(self) -> Tensor:
        """The tensor; called once, when it is ready."""
        taken = self.tensor
        if taken is None:
            raise RuntimeError(f"{self.step} has not been sent anything")
        self.is_taken, self.tensor = True, None
        return taken


class Transfers:
    """The queues between all pairs of ranks."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._sent: defaultdict[tuple[int, int], deque[Sent]] = defaultdict(deque)
        self._wanted: defaultdict[tuple[int, int], deque[Parcel]] = defaultdict(deque)

    def send(self, rank: int, step: Step, tensor: Tensor, axis: str, peer: int) -> None:
        """Hand a tensor to the rank at `peer`. Errors: E0652 if none is there, E0656 where it wants another."""
        to = self._partner(rank, step, axis, peer)
        self._sent[rank, to].append(Sent(step, tensor))
        self._match(rank, to)

    def receive(
        self, rank: int, step: Step, axis: str, peer: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Parcel:
        """The next tensor that the rank at `peer` sends here. Errors: as `send`."""
        source = self._partner(rank, step, axis, peer)
        parcel = Parcel(source, rank, step, shape, dtype)
        self._wanted[source, rank].append(parcel)
        self._match(source, rank)
        return parcel

    def check_taken(self) -> None:
        """E0663 for the first tensor that was sent and never asked for."""
        for (source, to), queue in self._sent.items():
            for sent in queue:
                raise InterpreterError(
                    NOT_TAKEN,
                    f"rank {source} sends rank {to} a tensor that rank {to} never receives: {sent.step}",
                    help="receive it, or do not send it",
                )

    def _partner(self, rank: int, step: Step, axis: str, peer: int) -> int:
        if not self._grid.has([axis]) or not 0 <= peer < self._grid.size([axis]):
            known = ", ".join(f"{name}={size}" for name, size in self._grid.mesh) or "no axes"
            raise InterpreterError(NO_MEANING, f"{step} is with {axis}={peer}, but the ranks are on {known}")
        return self._grid.group(rank, [axis])[peer]

    def _match(self, source: int, to: int) -> None:
        sent, wanted = self._sent[source, to], self._wanted[source, to]
        if not sent or not wanted:
            return
        one, parcel = sent.popleft(), wanted.popleft()
        pairs = [("shape", tuple(one.tensor.shape), parcel.shape), ("dtype", one.tensor.dtype, parcel.dtype)]
        differences = [f"{what} {a} is sent, {b} is received" for what, a, b in pairs if a != b]
        if differences:
            places = (
                Stuck(source, one.step.name, one.step.origin),
                Stuck(to, parcel.step.name, parcel.step.origin),
            )
            message = f"what rank {source} sends is not what rank {to} receives: {'; '.join(differences)}"
            raise DeadlockError(
                MISMATCH, message, places, help="let both ranks name the same tensors in the same order"
            )
        parcel.tensor = one.tensor
