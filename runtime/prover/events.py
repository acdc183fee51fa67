"""What a rank does with others, in the order in which its program says it."""

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
class Arrival:
    """The wait for a collective or receive that stands `back` events before it."""

    back: int


Event = Collective | Message | Arrival
"""What a rank does with others."""


def sent_of(each: Instruction, operand: Meta) -> Message:
    """What a `comm.send` sends."""
    return Message("send", str(each.kwargs["axis"]), _whole(each, "peer"), operand.shape, dtype_name(operand.dtype))


def received_of(each: Instruction) -> tuple[Message, Meta]:
    """What a `comm.receive_start` receives."""
    size, dtype = each.kwargs["size"], each.kwargs["dtype"]
    assert isinstance(size, list | tuple) and isinstance(dtype, torch.dtype), "validated"
    meta = Meta.contiguous(tuple(int(extent) for extent in size), dtype)
    return Message("receive", str(each.kwargs["axis"]), _whole(each, "peer"), meta.shape, dtype_name(dtype)), meta


def _whole(each: Instruction, key: str) -> int:
    value = each.kwargs[key]
    assert isinstance(value, int), "validated"
    return value
