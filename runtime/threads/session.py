"""The session whose ranks are threads of this process: callers pass and get global tensors.

Parameters are the caller's own. A rank gets a view of its shard or, where padding or blocks forbid a view, a copy at
the start of every step. Ranks write gradients into views of one global tensor per parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from enum import StrEnum
from typing import TypeVar

import torch
from torch import Tensor

from ..devices import require_cpu
from ..errors import RunError
from ..philox import RngState
from ..program.arguments import DTYPES
from ..program.program import Program
from ..program.records import Input, Output
from ..rank.executor import Executor, Frame
from ..rank.nan_watch import NanFound
from ..rank.replicas import compare_replicas
from ..rank.shards import local_tensor, sharding_axes, valid_part, windows
from ..rank.unreduced_gradients import UnreducedGradients
from ..session import State, check_arguments, tangents_or_zero
from .communicator import RankGroup
from .rank_pool import RankPool
from .resident_states import ResidentStates

T = TypeVar("T")


class Replicas(StrEnum):
    """What to do with the replicas of a result that is replicated over ranks. Only the primary one is returned."""

    TRUST = "trust"
    CHECK = "check"
    """All replicas must be equal, which shows a missing reduction. Compares every replicated result."""


class RankThreads:
    """A `Session` whose ranks are threads. A rank waits at most `timeout_s` for the others in a collective.

    `beside` is a session on a mesh with the same axes, whose threads this one shares; only one of them runs at a time.
    """

    def __init__(
        self,
        program: Program,
        *,
        timeout_s: float = 60.0,
        replicas: Replicas = Replicas.TRUST,
        beside: RankThreads | None = None,
    ) -> None:
        self._program = program.validated
        require_cpu(program.manifest.target)
        self._replicas = replicas
        self._mesh = program.mesh
        shared = beside is not None and beside._mesh.axes == program.mesh.axes and beside._pool.usable
        self._group: RankGroup = beside._group if beside and shared else RankGroup(program.mesh, timeout_s)
        self._executors = [Executor(program, self._group.communicator(rank)) for rank in range(program.mesh.ranks)]
        self._views: list[dict[str, tuple[int, tuple[int, ...], Tensor]]] = [{} for _ in self._executors]
        self._constants = constants_of(program)
        self._residents: ResidentStates = ResidentStates(program, beside._residents if beside and shared else None)
        self._tangents = program.of_kind("tangent")
        self.rng_state = RngState()
        self._pool: RankPool = beside._pool if beside and shared else RankPool(self._group)

    @property
    def copied_state_bytes(self) -> int:
        """The bytes of states that were copied, not written in place, since the session began."""
        return self._residents.copied_bytes

    @property
    def program(self) -> Program:
        """The program that it runs."""
        return self._program

    def forward(
        self,
        parameters: Sequence[Tensor],
        buffers: Sequence[Tensor],
        inputs: Sequence[Tensor],
        *,
        states: Sequence[Tensor] = (),
        scale: float = 1.0,
    ) -> tuple[list[Tensor], State]:
        """See `Session.forward`. Outputs are fresh tensors."""
        tensors_by_kind = {
            "parameter": parameters, "buffer": buffers, "state": states, "input": inputs, "constant": self._constants,
        }  # fmt: skip
        for kind, tensors in tensors_by_kind.items():
            check_arguments(kind, self._program.of_kind(kind), tensors, self._mesh)
        tensors_by_kind["random"] = [self.rng_state.tensor() for _ in self._program.of_kind("random")]
        tensors_by_kind["tangent"] = [
            torch.full(argument.shape, scale, dtype=DTYPES[argument.dtype]) for argument in self._tangents
        ]
        remaining = {kind: iter(tensors) for kind, tensors in tensors_by_kind.items()}
        values = {(argument.kind, argument.name): next(remaining[argument.kind]) for argument in self._program.inputs}
        outputs_and_buffers = [o for o in self._program.outputs if o.kind not in ("gradient", "state")]
        self._residents.begin([*zip(self._program.of_kind("state"), states, strict=True)])
        gathered = _Gathered(self._program, outputs_and_buffers, self._replicas)

        def step(rank: int) -> Frame:
            executor = self._executors[rank]
            local = [
                self._local(argument, values[argument.kind, argument.name], rank)
                for argument in executor.entry.forward_inputs
            ]
            results, frame = executor.forward(local)
            pairs = list(zip(executor.entry.forward_outputs, results, strict=True))
            others = [pair for pair in pairs if pair[0].kind != "state"]
            gathered.put(rank, [output for output, _ in others], [result for _, result in others])
            self._residents.store([pair for pair in pairs if pair[0].kind == "state"], rank)
            return frame

        frames = self._run(step)
        self._residents.end()
        names = [output.name for output in outputs_and_buffers if output.kind == "buffer"]
        new_buffers = dict(zip(names, gathered.by_kind("buffer"), strict=True))
        return gathered.by_kind("output"), State(new_buffers, frames)

    def backward(
        self, state: State, tangents: Sequence[Tensor | None], unreduced: UnreducedGradients | None = None
    ) -> dict[str, Tensor]:
        """See `Session.backward`. Raises RunError E0332 for a state that was used already."""
        gradient_outputs = self._program.results_of_kind("gradient")
        reduced_outputs = [output for output in gradient_outputs if not output.unreduced_over]
        sums = UnreducedGradients() if unreduced is None else unreduced
        frames = state.saved
        if not gradient_outputs or not isinstance(frames, list):
            raise RunError("E0333", "the program was compiled for inference: it has no backward", help="--mode train")
        values = list(zip(self._tangents, tangents_or_zero(self._tangents, tangents, self._mesh), strict=True))
        saved = [frame.take() for frame in frames]
        gathered = _Gathered(self._program, reduced_outputs, self._replicas)

        def step(rank: int) -> list[tuple[Output, Tensor]]:
            executor = self._executors[rank]
            local = [local_tensor(tensor.detach(), argument.shards, self._mesh, rank) for argument, tensor in values]
            results = executor.backward(Frame(saved[rank]), local)
            pairs = list(zip(executor.entry.gradients, results, strict=True))
            reduced = [pair for pair in pairs if not pair[0].unreduced_over]
            gathered.put(rank, [output for output, _ in reduced], [local for _, local in reduced])
            return [pair for pair in pairs if pair[0].unreduced_over]

        for rank, unreduced_pairs in enumerate(self._run(step)):
            for output, local in unreduced_pairs:
                sums.add(output, rank, local)
        gradients = dict(zip([output.name for output in reduced_outputs], gathered.by_kind("gradient"), strict=True))
        return gradients if unreduced is not None else gradients | self.reduce(sums)

    def reduce(self, unreduced: UnreducedGradients, names: Container[str] | None = None) -> dict[str, Tensor]:
        """See `Session.reduce`. Sums in the order of ranks."""
        gradients = {}
        for output, by_rank in unreduced.take(names):
            total = torch.zeros(output.shape, dtype=DTYPES[output.dtype])
            axes = (*sharding_axes(output.shards), *output.unreduced_over)
            for rank, local in by_rank.items():
                if self._mesh.is_primary(rank, axes, self._program.primary_coordinates(output)):
                    for window, own in windows(total, local, output.shards, self._mesh, rank):
                        window += own
            gradients[output.name] = total
        return gradients

    def holds(self, parameter: Tensor) -> bool:
        """See `Session.holds`: one process has all."""
        return True

    def close(self) -> None:
        """End the rank threads. Sessions that share them cannot be used afterwards."""
        self._pool.close()

    def __enter__(self) -> RankThreads:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _run(self, step: Callable[[int], T]) -> list[T]:
        """Run `step(rank)` on every rank. Of NaNs on several ranks, raises the one that no collective brought."""
        nan_errors: dict[int, NanFound] = {}

        def watched(rank: int) -> tuple[T, ...]:
            try:
                return (step(rank),)
            except NanFound as error:
                nan_errors[rank] = error
                return ()

        results = self._pool.run(watched)
        if nan_errors:
            raise min(sorted(nan_errors.items()), key=lambda pair: pair[1].from_collective)[1]
        self._group.check_all_received()
        return [value for result in results for value in result]

    def _local(self, argument: Input, tensor: Tensor, rank: int) -> Tensor:
        """The local tensor of a rank. Views of parameters are cached while the parameter's memory stays the same."""
        if argument.kind == "state":
            return self._residents.local(argument, rank)
        if argument.kind != "parameter":
            return local_tensor(tensor.detach(), argument.shards, self._mesh, rank)
        layout = (tensor.data_ptr(), tensor.stride())
        cached = self._views[rank].get(argument.name)
        if cached is not None and cached[:2] == layout:
            return cached[2]
        local = local_tensor(tensor.detach(), argument.shards, self._mesh, rank)
        if local.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr():
            self._views[rank][argument.name] = (*layout, local)
        return local


class _Gathered:
    """Collects the ranks' results into global tensors, one for each of `outputs`."""

    def __init__(self, program: Program, outputs: Sequence[Output], replicas: Replicas) -> None:
        self._mesh = program.mesh
        self._outputs = outputs
        self._replicas = replicas
        self._index_of = {(output.kind, output.name, output.index): index for index, output in enumerate(outputs)}
        self._axes = [sharding_axes(output.shards) for output in outputs]
        self._primaries = [program.primary_coordinates(output) for output in outputs]
        self._tensors = [torch.empty(output.shape, dtype=DTYPES[output.dtype]) for output in outputs]
        self._others: list[list[tuple[int, Tensor]]] = [[] for _ in outputs]

    def put(self, rank: int, outputs: Sequence[Output], results: Sequence[Tensor]) -> None:
        """Store a rank's results, called from its thread. Primary replicas are written, others kept for comparison."""
        for output, local in zip(outputs, results, strict=True):
            index = self._index_of[output.kind, output.name, output.index]
            if self._mesh.is_primary(rank, self._axes[index], self._primaries[index]):
                for window, own in windows(self._tensors[index], local, output.shards, self._mesh, rank):
                    window.copy_(own)
            elif self._replicas is Replicas.CHECK:
                self._others[index].append((rank, local))

    def by_kind(self, kind: str) -> list[Tensor]:
        """The global tensors of one kind, after all ranks have ended. Compares replicas if `Replicas.CHECK`."""
        for output, tensor, others in zip(self._outputs, self._tensors, self._others, strict=True):
            for rank, local in sorted(others, key=lambda other: other[0]):
                whole = local_tensor(tensor, output.shards, self._mesh, rank)
                expected = valid_part(whole, output.shards, self._mesh, rank)
                compare_replicas(output, expected, valid_part(local, output.shards, self._mesh, rank), rank)
            others.clear()
        return [tensor for output, tensor in zip(self._outputs, self._tensors, strict=True) if output.kind == kind]


def constants_of(program: Program) -> list[Tensor]:
    """The values of a program's constants, in its order. Raises RunError E0313 where one is missing."""
    constants = program.of_kind("constant")
    missing = [argument.name for argument in constants if argument.name not in program.weights]
    if missing:
        raise RunError("E0313", f"the program has no value for constant '{missing[0]}'", help="compile the model again")
    return [program.weights[argument.name] for argument in constants]
