"""Point-to-point messages: between each pair of ranks, messages arrive in the order in which they are sent."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass

import torch
from torch import Tensor

from ..collectives import SEND
from .code import Step
from .errors import MISMATCH, NO_MEANING, NOT_TAKEN, DeadlockError, InterpreterError, Stuck
from .grid import Grid

RECEIVE_HELP = "on one of the ranks, move the send that another one waits for before its own receive"


@dataclass(frozen=True)
class Message:
    """A sent tensor that is not received yet."""

    step: Step
    tensor: Tensor


@dataclass(eq=False)
class PendingReceive:
    """A receive that has started; its tensor is taken once."""

    source: int
    rank: int
    step: Step
    """The receive operation."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    tensor: Tensor | None = None
    is_taken: bool = False

    @property
    def is_ready(self) -> bool:
        return self.tensor is not None

    @property
    def missing(self) -> tuple[int, ...]:
        """The ranks that it waits for."""
        return () if self.is_ready else (self.source,)

    def take(self) -> Tensor:
        """The tensor; called once, when it is ready."""
        tensor = self.tensor
        if tensor is None:
            raise RuntimeError(f"{self.step} has no tensor yet")
        self.is_taken, self.tensor = True, None
        return tensor


def carried(step: Step) -> str:
    """What a send or receive says that its message carries; "a tensor" where it says nothing."""
    names = step.args[3:] if step.name == SEND else step.args[4:]
    return str(names[0]) if names else "a tensor"


class Transfers:
    """The message queues between all pairs of ranks."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._sent: defaultdict[tuple[int, int], deque[Message]] = defaultdict(deque)
        self._receives: defaultdict[tuple[int, int], deque[PendingReceive]] = defaultdict(deque)

    def send(self, rank: int, step: Step, tensor: Tensor, axis: str, peer: int) -> None:
        """Send a tensor to the rank at `peer`. Errors: E0652 if there is none, E0656 if it expects another tensor."""
        to = self._partner(rank, step, axis, peer)
        self._sent[rank, to].append(Message(step, tensor))
        self._match(rank, to)

    def receive(
        self, rank: int, step: Step, axis: str, peer: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> PendingReceive:
        """The next tensor that the rank at `peer` sends here. Errors: as `send`."""
        source = self._partner(rank, step, axis, peer)
        pending = PendingReceive(source, rank, step, shape, dtype)
        self._receives[source, rank].append(pending)
        self._match(source, rank)
        return pending

    def check_taken(self) -> None:
        """E0663 for the first message that was never received."""
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
            raise InterpreterError(NO_MEANING, f"{step} names {axis}={peer}, but the ranks are on {known}")
        return self._grid.group(rank, [axis])[peer]

    def _match(self, source: int, to: int) -> None:
        sent, receives = self._sent[source, to], self._receives[source, to]
        if not sent or not receives:
            return
        message, receive = sent.popleft(), receives.popleft()
        pairs = [
            ("shape", tuple(message.tensor.shape), receive.shape),
            ("dtype", message.tensor.dtype, receive.dtype),
            ("value", carried(message.step), carried(receive.step)),
        ]
        differences = [f"{field} {a} is sent, {b} is received" for field, a, b in pairs if a != b]
        if differences:
            places = (
                Stuck(source, message.step.name, message.step.origin),
                Stuck(to, receive.step.name, receive.step.origin),
            )
            text = f"rank {source} sends another tensor than rank {to} receives: {'; '.join(differences)}"
            raise DeadlockError(MISMATCH, text, places, help="send and receive the same tensors in the same order")
        receive.tensor = message.tensor
