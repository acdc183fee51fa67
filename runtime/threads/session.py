"""A program on ranks that are threads of this process: full tensors in, full tensors out.

Parameters are the caller's own: a rank sees a view of its shard, or, where padding forbids a view, a copy made at every
step's start. Gradients are written by the ranks into views of one full tensor per parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from enum import StrEnum
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import RunError
from ..philox import RandomState
from ..program.arguments import DTYPES
from ..program.program import Program
from ..program.records import Input, Output
from ..rank.executor import Executor, Frame
from ..rank.nan_watch import NanFound
from ..rank.replicas import compare_replicas
from ..rank.shards import cut, sharding_axes, valid_part, window
from ..rank.unreduced_gradients import Addends
from ..session import State, check_given, tangents_or_zero
from .communicator import RankGroup
from .rank_pool import RankPool

T = TypeVar("T")


class Replicas(StrEnum):
    """What is done with a result that a placement says is the same on several ranks; one of them is kept."""

    TRUST = "trust"
    CHECK = "check"
    """The others must equal it, so that a missing reduction cannot hide (costs a comparison of everything)."""


class RankThreads:
    """A `Session` whose ranks are threads. `timeout_s`: how long a rank waits for the others in a collective.

    `beside`: a session on a mesh of the same axes whose threads this one uses too; steps of both never run at once.
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
        self._replicas = replicas
        self._mesh = program.mesh
        shared = beside is not None and beside._mesh.axes == program.mesh.axes and beside._pool.usable
        self._group: RankGroup = beside._group if beside and shared else RankGroup(program.mesh, timeout_s)
        self._executors = [Executor(program, self._group.communicator(rank)) for rank in range(program.mesh.ranks)]
        self._views: list[dict[str, tuple[int, tuple[int, ...], Tensor]]] = [{} for _ in self._executors]
        self._constants = constants_of(program)
        self._tangents = program.of_kind("tangent")
        self.random_state = RandomState()
        self._pool: RankPool = beside._pool if beside and shared else RankPool(self._group)

    @property
    def program(self) -> Program:
        """What it runs."""
        return self._program

    def forward(
        self,
        parameters: Sequence[Tensor],
        buffers: Sequence[Tensor],
        inputs: Sequence[Tensor],
        *,
        scale: float = 1.0,
    ) -> tuple[list[Tensor], State]:
        """See `Session.forward`. Outputs are fresh tensors."""
        given = {"parameter": parameters, "buffer": buffers, "input": inputs, "constant": self._constants}
        for kind, tensors in given.items():
            check_given(kind, self._program.of_kind(kind), tensors, self._mesh)
        given["random"] = [self.random_state.tensor() for _ in self._program.of_kind("random")]
        given["tangent"] = [torch.full(each.shape, scale, dtype=DTYPES[each.dtype]) for each in self._tangents]
        queues = {kind: iter(tensors) for kind, tensors in given.items()}
        whole = {(each.kind, each.name): next(queues[each.kind]) for each in self._program.inputs}
        gives = [each for each in self._program.outputs if each.kind != "gradient"]
        gathered = _Gathered(self._program, gives, self._replicas)

        def step(rank: int) -> Frame:
            executor = self._executors[rank]
            local = [self._local(each, whole[each.kind, each.name], rank) for each in executor.entry.early]
            results, frame = executor.forward(local)
            gathered.put(rank, executor.entry.results, results)
            return frame

        frames = self._run(step)
        outputs, buffered = gathered.by_kind("output"), gathered.by_kind("buffer")
        names = [each.name for each in gives if each.kind == "buffer"]
        return outputs, State(dict(zip(names, buffered, strict=True)), frames)

    def backward(
        self, state: State, tangents: Sequence[Tensor | None], addends: Addends | None = None
    ) -> dict[str, Tensor]:
        """See `Session.backward`. Raises RunError E0332 for a state that was used already."""
        takes = self._tangents
        gives = self._program.results_of_kind("gradient")
        whole_gives = [each for each in gives if not each.addends]
        waiting = Addends() if addends is None else addends
        frames = state.kept
        if not gives or not isinstance(frames, list):
            raise RunError("E0333", "the program was compiled for inference: it has no backward", help="--mode train")
        whole = list(zip(takes, tangents_or_zero(takes, tangents, self._mesh), strict=True))
        kept = [frame.take() for frame in frames]
        gathered = _Gathered(self._program, whole_gives, self._replicas)

        def step(rank: int) -> list[tuple[Output, Tensor]]:
            executor = self._executors[rank]
            local = [cut(tensor.detach(), each.shards, self._mesh, rank) for each, tensor in whole]
            results = executor.backward(Frame(kept[rank]), local)
            pairs = list(zip(executor.entry.gradients, results, strict=True))
            ready = [pair for pair in pairs if not pair[0].addends]
            gathered.put(rank, [each for each, _ in ready], [local for _, local in ready])
            return [pair for pair in pairs if pair[0].addends]

        for rank, left in enumerate(self._run(step)):
            for each, local in left:
                waiting.add(each, rank, local)
        found = dict(zip([each.name for each in whole_gives], gathered.by_kind("gradient"), strict=True))
        return found if addends is not None else found | self.reduce(waiting)

    def reduce(self, addends: Addends, wanted: Container[str] | None = None) -> dict[str, Tensor]:
        """See `Session.reduce`; sums in the order of the ranks."""
        gradients = {}
        for each, by_rank in addends.take(wanted):
            total = torch.zeros(each.shape, dtype=DTYPES[each.dtype])
            axes = (*sharding_axes(each.shards), *each.addends)
            for rank, local in by_rank.items():
                if self._mesh.is_first(rank, axes, self._program.speakers(each)):
                    own = window(total, each.shards, self._mesh, rank)
                    own += valid_part(local, each.shards, self._mesh, rank)
            gradients[each.name] = total
        return gradients

    def close(self) -> None:
        """End the rank threads; neither this session nor one beside it can be used afterwards."""
        self._pool.close()

    def __enter__(self) -> RankThreads:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _run(self, step: Callable[[int], T]) -> list[T]:
        """`step(rank)` on every rank; of NaNs that several found, the one told is where it was made."""
        found: dict[int, NanFound] = {}

        def watched(rank: int) -> tuple[T, ...]:
            try:
                return (step(rank),)
            except NanFound as error:
                found[rank] = error
                return ()

        results = self._pool.run(watched)
        if found:
            raise min(sorted(found.items()), key=lambda pair: pair[1].arrived)[1]
        self._group.check_all_received()
        return [value for result in results for value in result]

    def _local(self, each: Input, tensor: Tensor, rank: int) -> Tensor:
        """This rank's part; views of parameters are made once, as long as the parameter stays where it is."""
        if each.kind != "parameter":
            return cut(tensor.detach(), each.shards, self._mesh, rank)
        at = (tensor.data_ptr(), tensor.stride())
        known = self._views[rank].get(each.name)
        if known is not None and known[:2] == at:
            return known[2]
        local = cut(tensor.detach(), each.shards, self._mesh, rank)
        if local.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr():
            self._views[rank][each.name] = (*at, local)
        return local


class _Gathered:
    """Collects what the ranks computed into global tensors; one per result, in the order of `gives`."""

    def __init__(self, program: Program, gives: Sequence[Output], replicas: Replicas) -> None:
        self._mesh = program.mesh
        self._gives = gives
        self._replicas = replicas
        self._at = {(each.kind, each.name, each.index): at for at, each in enumerate(gives)}
        self._axes = [sharding_axes(each.shards) for each in gives]
        self._speakers = [program.speakers(each) for each in gives]
        self._whole = [torch.empty(each.shape, dtype=DTYPES[each.dtype]) for each in gives]
        self._others: list[list[tuple[int, Tensor]]] = [[] for _ in gives]

    def put(self, rank: int, gives: Sequence[Output], results: Sequence[Tensor]) -> None:
        """Called by every rank, from its thread: the first of each set of replicas writes, the others may be kept."""
        for each, local in zip(gives, results, strict=True):
            at = self._at[each.kind, each.name, each.index]
            if self._mesh.is_first(rank, self._axes[at], self._speakers[at]):
                own = window(self._whole[at], each.shards, self._mesh, rank)
                own.copy_(valid_part(local, each.shards, self._mesh, rank))
            elif self._replicas is Replicas.CHECK:
                self._others[at].append((rank, local))

    def by_kind(self, kind: str) -> list[Tensor]:
        """The global tensors of one kind, once all ranks have ended; compares replicas when asked to."""
        for each, whole, others in zip(self._gives, self._whole, self._others, strict=True):
            for rank, local in sorted(others, key=lambda other: other[0]):
                expected = window(whole, each.shards, self._mesh, rank)
                compare_replicas(each, expected, valid_part(local, each.shards, self._mesh, rank), rank)
            others.clear()
        return [whole for each, whole in zip(self._gives, self._whole, strict=True) if each.kind == kind]


def constants_of(program: Program) -> list[Tensor]:
    """Their values, in the program's order; raises RunError E0313 when one is missing."""
    takes = program.of_kind("constant")
    missing = [each.name for each in takes if each.name not in program.weights]
    if missing:
        raise RunError("E0313", f"the program has no value for constant '{missing[0]}'", help="compile it again")
    return [program.weights[each.name] for each in takes]
