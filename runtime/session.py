"""What a program is given by its caller, checked against what it takes; and the seam that callers see."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .errors import RunError
from .philox import RandomState
from .program.arguments import DTYPES, dtype_name
from .program.mesh import RankMesh
from .program.program import Program
from .program.records import Input
from .rank.unreduced_gradients import Addends


class State:
    """What one forward leaves behind: the new values of buffers, and what its backward needs."""

    def __init__(self, buffers: Mapping[str, Tensor], kept: object) -> None:
        self.buffers = buffers
        """New global values by name; the caller writes them back, once."""
        self.kept = kept
        """Known only to the session that made it."""


class Session(Protocol):
    """Runs a program on all its ranks, seen from outside: everything is global, nothing is a shard."""

    random_state: RandomState
    """What the next forward draws its random numbers from; the caller sets it before each, alike on all ranks."""

    @property
    def program(self) -> Program:
        """What it runs."""
        ...

    def forward(
        self,
        parameters: Sequence[Tensor],
        buffers: Sequence[Tensor],
        inputs: Sequence[Tensor],
        *,
        scale: float = 1.0,
    ) -> tuple[list[Tensor], State]:
        """The outputs (kind "output") in the program's order; arguments stand as `program.of_kind(...)` lists them.

        In a pipeline backwards begin before the forward ends: `scale` is the tangent that they begin with, and the
        state holds the gradients times it. Other programs do not look at it.
        """
        ...

    def backward(
        self, state: State, tangents: Sequence[Tensor | None], addends: Addends | None = None
    ) -> dict[str, Tensor]:
        """Gradients by parameter name, for one tangent per `program.of_kind("tangent")` (None: zero); once a state.

        What the program leaves unreduced is added to `addends` and not returned; where there is none, it is reduced.
        """
        ...

    def reduce(self, addends: Addends, wanted: Container[str] | None = None) -> dict[str, Tensor]:
        """The gradients that were waiting for their reduction, summed over the ranks; what is not wanted waits on."""
        ...

    def close(self) -> None:
        """Give back threads, processes, connections."""
        ...


def check_given(kind: str, takes: Sequence[Input], given: Sequence[Tensor], mesh: RankMesh) -> None:
    """Raise RunError (E0310 to E0312) where number, shape or dtype is not what the program takes."""
    if len(takes) != len(given):
        raise RunError("E0310", f"the program takes {len(takes)} tensors of kind '{kind}', {len(given)} were given")
    for expected, tensor in zip(takes, given, strict=True):
        if tuple(tensor.shape) != expected.shape:
            raise _wrong_shape(kind, expected, tensor, mesh)
        if tensor.dtype != DTYPES[expected.dtype]:
            raise RunError(
                "E0312",
                f"{kind} '{expected.name}' has dtype {dtype_name(tensor.dtype)}, "
                f"the program was compiled for {expected.dtype}",
            )


def tangents_or_zero(takes: Sequence[Input], given: Sequence[Tensor | None], mesh: RankMesh) -> list[Tensor]:
    """One tensor for each tangent that the program takes, checked."""
    if len(takes) != len(given):
        raise RunError("E0310", f"the program takes {len(takes)} tensors of kind 'tangent', {len(given)} were given")
    tensors = [
        torch.zeros(expected.shape, dtype=DTYPES[expected.dtype]) if tensor is None else tensor
        for expected, tensor in zip(takes, given, strict=True)
    ]
    check_given("tangent", takes, tensors, mesh)
    return tensors


def _wrong_shape(kind: str, expected: Input, tensor: Tensor, mesh: RankMesh) -> RunError:
    notes = []
    for shard in expected.shards:
        parts = mesh.size(shard.axes)
        if tensor.dim() > shard.dim and tensor.shape[shard.dim] % parts:
            notes.append(
                f"dim {shard.dim} is cut over {' and '.join(shard.axes)} into {parts} parts, "
                f"which do not divide {tensor.shape[shard.dim]}"
            )
    return RunError(
        "E0311",
        f"{kind} '{expected.name}' has shape {list(tensor.shape)}, "
        f"the program was compiled for {list(expected.shape)} (global)",
        notes=tuple((note, None) for note in notes),
        help="pass the global batch of that shape, or compile the program for this one",
    )
