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
    carries: str = ""
    """The value of the module that it carries; empty in a program that does not say it."""

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
    axis, peer, carries = _ends(instruction)
    return Message("send", axis, peer, operand.shape, dtype_name(operand.dtype), carries)


def receive_of(instruction: Instruction) -> tuple[Message, Meta]:
    """The message of a `comm.receive_start`, and the tensor that it receives."""
    size, dtype = instruction.kwargs["size"], instruction.kwargs["dtype"]
    assert isinstance(size, list | tuple) and isinstance(dtype, torch.dtype), "validated"
    meta = Meta.contiguous(tuple(int(extent) for extent in size), dtype)
    axis, peer, carries = _ends(instruction)
    return Message("receive", axis, peer, meta.shape, dtype_name(dtype), carries), meta


def _ends(instruction: Instruction) -> tuple[str, int, str]:
    """The axis and coordinate of the other end, and what the message carries."""
    axis, peer = instruction.kwargs["axis"], instruction.kwargs["peer"]
    assert isinstance(axis, str) and isinstance(peer, int), "validated"
    return axis, peer, str(instruction.kwargs.get("carries", ""))
