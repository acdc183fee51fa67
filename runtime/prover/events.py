"""Communication events of a rank: collectives, messages, and the waits for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..program.arguments import dtype_name
from ..program.records import Instruction
from .collectives import Collective
from .values import Meta


@dataclass(frozen=True)
class Message:
    """One side of a message: "send", which never waits, or "receive"."""

    op: str
    axis: str
    peer: int
    """The partner's coordinate on `axis`."""
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class WaitEvent:
    """The wait for a collective or receive that was started `distance` events before."""

    distance: int


Event = Collective | Message | WaitEvent
"""A communication event."""


def send_of(instruction: Instruction, operand: Meta) -> Message:
    """The message of a `comm.send`."""
    return Message(
        "send", str(instruction.kwargs["axis"]), _integer(instruction, "peer"), operand.shape, dtype_name(operand.dtype)
    )


def receive_of(instruction: Instruction) -> tuple[Message, Meta]:
    """The message of a `comm.receive_start`, and the tensor that it receives."""
    size, dtype = instruction.kwargs["size"], instruction.kwargs["dtype"]
    assert isinstance(size, list | tuple) and isinstance(dtype, torch.dtype), "validated"
    meta = Meta.contiguous(tuple(int(extent) for extent in size), dtype)
    return Message(
        "receive", str(instruction.kwargs["axis"]), _integer(instruction, "peer"), meta.shape, dtype_name(dtype)
    ), meta


def _integer(instruction: Instruction, key: str) -> int:
    value = instruction.kwargs[key]
    assert isinstance(value, int), "validated"
    return value
