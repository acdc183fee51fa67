"""The interface of a loaded program with its ranks (`Session`), and the checks of the tensors that a caller passes."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .errors import RunError
from .philox import RngState
from .program.arguments import DTYPES, dtype_name
from .program.mesh import RankMesh
from .program.program import Program
from .program.records import Input
from .rank.unreduced_gradients import UnreducedGradients


class State:
    """The state after one forward: new values of buffers, and what its backward needs."""

    def __init__(self, buffers: Mapping[str, Tensor], saved: object) -> None:
        self.buffers = buffers
        """New global values by name; the caller writes them back, once."""
        self.saved = saved
        """What the backward needs; its type is the session's own."""


class Session(Protocol):
    """A loaded program with its ranks, ready to be called. All tensors are global."""

    rng_state: RngState
    """The RNG state of the next forward. The caller sets it before each forward, to the same value on all ranks."""

    @property
    def program(self) -> Program:
        """The program that it runs."""
        ...

    def forward(
        self,
        parameters: Sequence[Tensor],
        buffers: Sequence[Tensor],
        inputs: Sequence[Tensor],
        *,
        states: Sequence[Tensor] = (),
        scale: float = 1.0,
    ) -> tuple[list[Tensor], State]:
        """The outputs of kind "output" in the program's order. Arguments are in the order of `program.of_kind(...)`.

        States get their new values in place.

        A pipeline runs backwards before its forward ends: `scale` is their tangent, and the state has the gradients
        times it. Other programs ignore `scale`.
        """
        ...

    def backward(
        self, state: State, tangents: Sequence[Tensor | None], unreduced: UnreducedGradients | None = None
    ) -> dict[str, Tensor]:
        """Gradients by parameter name, for one tangent per `program.of_kind("tangent")` (None: zero).

        Runs once per state. Gradients that the program leaves unreduced are added to `unreduced` and not returned;
        without `unreduced` they are reduced and returned.
        """
        ...

    def reduce(self, unreduced: UnreducedGradients, names: Container[str] | None = None) -> dict[str, Tensor]:
        """The unreduced gradients in `names` (None: all), summed over the ranks; others stay in `unreduced`."""
        ...

    def holds(self, parameter: Tensor) -> bool:
        """Whether this process has a part of a parameter; it has none of those of other stages."""
        ...

    def close(self) -> None:
        """Release threads, processes and connections."""
        ...


def check_arguments(kind: str, arguments: Sequence[Input], tensors: Sequence[Tensor], mesh: RankMesh) -> None:
    """Raise RunError (E0310 to E0312) where number, shapes or dtypes are not those that the program takes."""
    if len(arguments) != len(tensors):
        raise RunError("E0310", f"the program takes {len(arguments)} tensors of kind '{kind}', found {len(tensors)}")
    for expected, tensor in zip(arguments, tensors, strict=True):
        if tuple(tensor.shape) != expected.shape:
            raise _wrong_shape(kind, expected, tensor, mesh)
        if tensor.dtype != DTYPES[expected.dtype]:
            raise RunError(
                "E0312",
                f"{kind} '{expected.name}' has dtype {dtype_name(tensor.dtype)}, "
                f"but the program was compiled for {expected.dtype}",
            )


def tangents_or_zero(arguments: Sequence[Input], tangents: Sequence[Tensor | None], mesh: RankMesh) -> list[Tensor]:
    """One tensor for each tangent that the program takes, zeros for None; checked as by `check_arguments`."""
    if len(arguments) != len(tangents):
        raise RunError("E0310", f"the program takes {len(arguments)} tensors of kind 'tangent', found {len(tangents)}")
    tensors = [
        torch.zeros(expected.shape, dtype=DTYPES[expected.dtype]) if tensor is None else tensor
        for expected, tensor in zip(arguments, tangents, strict=True)
    ]
    check_arguments("tangent", arguments, tensors, mesh)
    return tensors


def _wrong_shape(kind: str, expected: Input, tensor: Tensor, mesh: RankMesh) -> RunError:
    notes = []
    for shard in expected.shards:
        parts = mesh.size(shard.axes)
        if tensor.dim() > shard.dim and tensor.shape[shard.dim] % parts:
            notes.append(
                f"dim {shard.dim} is sharded over {' and '.join(shard.axes)} into {parts} parts, "
                f"which do not divide {tensor.shape[shard.dim]}"
            )
    return RunError(
        "E0311",
        f"{kind} '{expected.name}' has shape {list(tensor.shape)}, "
        f"but the program was compiled for the global shape {list(expected.shape)}",
        notes=tuple((note, None) for note in notes),
        help="pass the global batch of that shape, or compile the program for this one",
    )
