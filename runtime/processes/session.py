"""A program on ranks that are processes: this process is one of them, and holds its part of parameters and outputs."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..errors import CollectiveError, RunError
from ..philox import RandomState
from ..program.arguments import DTYPES
from ..program.program import Program
from ..program.records import Input, Output
from ..rank.executor import Executor, Frame
from ..rank.replicas import compare_replicas
from ..rank.shards import cut, sharding_axes, valid_part
from ..rank.unreduced_gradients import Addends
from ..session import State, check_given, tangents_or_zero
from ..threads.session import Replicas, constants_of
from .communicator import DistributedCommunicator, groups_of
from .parameters import Layout, placed_as
from .stages import Stages
from .termination import Step
from .world import World, join


@dataclass(frozen=True)
class _Kept:
    """What a backward needs: the frame, and which arguments were DTensors, so that their gradients are too."""

    frame: Frame
    distributed: frozenset[str]
    elsewhere: Mapping[str, int]
    """Parameters that stand on another stage than the one that used them, and which."""


class ProcessRank:
    """A `Session` in which this process is one rank. Every process makes one, of the same program.

    Plain tensors are global: each process takes its part of them, and what comes back for them is global. A DTensor
    stays one: parameters that are DTensors get gradients that are. Outputs that the program cuts are DTensors.
    """

    def __init__(
        self, program: Program, *, timeout_s: float | None = None, replicas: Replicas = Replicas.TRUST
    ) -> None:
        self._program = program.validated
        self._mesh = program.mesh
        self._replicas = replicas
        self._world = join(program.manifest.target, timeout_s)
        self._world.agree(program)
        self._messages = None if program.pipeline is None else self._world.messages
        groups = [*groups_of(program), *self._groups_of_results()]
        self._communicator = DistributedCommunicator(self._world, self._mesh, groups, messages=self._messages)
        self._executor = Executor(program, self._communicator, self._world.device)
        self._stages = Stages(program, self._world, self._communicator)
        self._owners = {each.name: each for each in program.of_kind("parameter")}
        self._layouts = {_key(each): self._layout(each) for each in _tensors(program)}
        constants = zip(program.of_kind("constant"), constants_of(program), strict=True)
        self._constants = {each.name: self._part(each, tensor) for each, tensor in constants}
        self.random_state = RandomState()
        self._step = _step()
        self._distributed: frozenset[str] = frozenset()
        """Which arguments of the last forward were DTensors."""
        self._elsewhere: dict[str, int] = {}
        """Which of its parameters stand on another stage than the one that used them, and which that is."""

    @property
    def program(self) -> Program:
        """What it runs."""
        return self._program

    @property
    def world(self) -> World:
        """The processes it runs on."""
        return self._world

    def forward(
        self,
        parameters: Sequence[Tensor],
        buffers: Sequence[Tensor],
        inputs: Sequence[Tensor],
        *,
        scale: float = 1.0,
    ) -> tuple[list[Tensor], State]:
        """See `Session.forward`."""
        given = {"parameter": parameters, "buffer": buffers, "input": inputs}
        for kind, tensors in given.items():
            check_given(kind, self._program.of_kind(kind), tensors, self._mesh)
        given["random"] = [self.random_state.tensor() for _ in self._program.of_kind("random")]
        tangents = self._program.of_kind("tangent")
        given["tangent"] = [torch.full(each.shape, scale, dtype=DTYPES[each.dtype]) for each in tangents]
        queues = {kind: iter(tensors) for kind, tensors in given.items()}
        takes = [each for each in self._program.inputs if each.kind in queues]
        whole = {(each.kind, each.name): next(queues[each.kind]) for each in takes}
        entry = self._executor.entry
        with torch.no_grad(), self._in_step():
            brought = self._brought(parameters)
            local = [
                self._constants[each.name]
                if each.kind == "constant"
                else brought[each.name]
                if each.kind == "parameter" and each.name in brought
                else self._part(each, whole[each.kind, each.name])
                for each in entry.early
            ]
            results, frame = self._executor.forward(local)
            self._compare(entry.results, results)
            own = {_key(each): one for each, one in zip(entry.results, results, strict=True)}
            outputs, changed = [], {}
            for each in self._program.outputs:
                if each.kind == "output":
                    outputs.append(self._given_out(each, self._stages.everywhere(each, own.get(_key(each)))))
                elif each.kind == "buffer":
                    changed[each.name] = self._whole(each, self._stages.everywhere(each, own.get(_key(each)))).clone()
        self._distributed = frozenset(name for (_, name), tensor in whole.items() if isinstance(tensor, DTensor))
        return outputs, State(changed, _Kept(frame, self._distributed, dict(self._elsewhere)))

    def backward(
        self, state: State, tangents: Sequence[Tensor | None], addends: Addends | None = None
    ) -> dict[str, Tensor]:
        """See `Session.backward`."""
        takes = self._program.of_kind("tangent")
        gives = self._program.results_of_kind("gradient")
        kept = state.kept
        if not gives or not isinstance(kept, _Kept):
            raise RunError("E0333", "the program was compiled for inference: it has no backward", help="--mode train")
        given = tangents_or_zero(takes, tangents, self._mesh)
        with torch.no_grad(), self._in_step():
            local = [self._part(each, tensor) for each, tensor in zip(takes, given, strict=True)]
            entry = self._executor.entry
            results = self._executor.backward(kept.frame, local)
            self._compare(entry.gradients, results)
            used = {tensor.untyped_storage().data_ptr() for tensor in local}
            found = {each.name: result for each, result in zip(entry.gradients, results, strict=True)}
            gradients: dict[str, Tensor] = {}
            waiting = Addends() if addends is None else addends
            for each in gives:
                result = found.get(each.name)
                if result is not None and result.untyped_storage().data_ptr() in used:
                    result = result.clone()
                if result is not None:
                    used.add(result.untyped_storage().data_ptr())
                if each.addends:
                    waiting.add(each, self._world.rank, torch.empty(0) if result is None else result)
                else:
                    self._deliver(gradients, each, result, self._layouts[_key(each)], kept)
        return gradients if addends is not None else gradients | self.reduce(waiting)

    def reduce(self, addends: Addends, wanted: Container[str] | None = None) -> dict[str, Tensor]:
        """See `Session.reduce`; every process must call it at the same point. A DTensor parameter's is a DTensor."""
        gradients: dict[str, Tensor] = {}
        last = _Kept(Frame([]), self._distributed, self._elsewhere)
        with torch.no_grad(), self._in_step():
            for each, by_rank in addends.take(wanted):
                where = f"reducing gradient '{each.name}'"
                local: Tensor | None = None
                if self._stages.has(each):
                    local = by_rank[self._world.rank]
                    local = self._communicator.all_reduce_start(local, each.addends, "sum", where).wait()
                owner = self._owners[each.name]
                if local is not None and owner.shards != each.shards:
                    local = cut(self._whole(each, local), owner.shards, self._mesh, self._world.rank)
                cut_as = replace(each, shards=owner.shards)
                self._deliver(gradients, cut_as, local, self._layouts[_key(owner)], last)
        return gradients

    def close(self) -> None:
        """Nothing: connections belong to the process."""

    def __enter__(self) -> ProcessRank:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _part(self, each: Input, tensor: Tensor) -> Tensor:
        """What this rank's program takes of one argument."""
        if not isinstance(tensor, DTensor):
            return cut(tensor.detach(), each.shards, self._mesh, self._world.rank).to(self._world.device)
        layout = self._layouts[_key(each)]
        if layout is None:
            return self._part(each, tensor.full_tensor())
        if each.kind == "parameter" and not layout.fits(tensor):
            raise RunError(
                "E0356",
                f"parameter '{each.name}' is placed as {placed_as(tensor)}, the program was compiled for {layout}",
                help="compile with the plan that distributed the parameters",
            )
        return layout.padded(tensor if each.kind == "parameter" else layout.moved(tensor))

    def _given_out(self, each: Output, local: Tensor) -> Tensor:
        layout = self._layouts[_key(each)]
        if layout is None or not each.shards:
            return self._whole(each, local).clone()
        return layout.dtensor(local.clone())

    def _deliver(
        self, gradients: dict[str, Tensor], each: Output, local: Tensor | None, layout: Layout | None, kept: _Kept
    ) -> None:
        """Add to `gradients` what the caller gets of one: nothing where a DTensor parameter stands on other ranks."""
        if each.name in kept.elsewhere:
            found = self._stages.back(each, local, kept.elsewhere[each.name])
        elif each.name not in kept.distributed or layout is None:
            found = self._whole(each, self._stages.everywhere(each, local))
        elif each.name in self._owners:
            found = None if local is None else layout.dtensor(local)
        else:
            found = layout.dtensor(self._stages.everywhere(each, local))
        if found is not None:
            gradients[each.name] = found

    def _brought(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        """This process's parts of parameters that stand on another stage than the one that uses them."""
        self._elsewhere = {}
        brought: dict[str, Tensor] = {}
        for each, tensor in zip(self._program.of_kind("parameter"), parameters, strict=True):
            stage = self._stages.elsewhere(each, tensor)
            if stage is not None and isinstance(tensor, DTensor):
                self._elsewhere[each.name] = stage
                came = self._stages.brought(each, tensor, stage)
                brought.update({} if came is None else {each.name: came})
        return brought

    def _groups_of_results(self) -> Iterator[tuple[str, ...]]:
        """The sets of axes over which results are put together and compared: all processes connect in one order."""
        for each in self._program.outputs:
            yield from (shard.axes for shard in each.shards)
            yield each.addends
            if self._replicas is not Replicas.TRUST:
                yield self._copied_over(each)

    def _copied_over(self, each: Output) -> tuple[str, ...]:
        """The axes along which all ranks, or all of those that have it, hold the same part of a result."""
        apart = {*sharding_axes(each.shards), *each.addends, *self._program.speakers(each)}
        return tuple(axis for axis, size in self._mesh.axes if axis not in apart and size > 1)

    def _whole(self, each: Output, local: Tensor) -> Tensor:
        """The global tensor of a result."""
        for shard in each.shards:
            where = f"gathering {each.kind} '{each.name or each.index}'"
            local = self._communicator.all_gather_start(local, shard.axes, shard.dim, where).wait()
            local = local.narrow(shard.dim, 0, shard.extent)
        return local

    def _compare(self, gives: Sequence[Output], results: Sequence[Tensor]) -> None:
        """Where replicas are checked: all ranks' copies of a result against the first one's."""
        if self._replicas is Replicas.TRUST:
            return
        for each, local in zip(gives, results, strict=True):
            others = self._copied_over(each)
            own = valid_part(local, each.shards, self._mesh, self._world.rank)
            where = f"comparing replicas of {each.kind} '{each.name or each.index}'"
            copies = self._communicator.all_gather_start(own[None], others, 0, where).wait()
            for rank, copy in zip(self._mesh.group(self._world.rank, others), copies, strict=True):
                compare_replicas(each, copies[0], copy, rank)

    def _layout(self, each: Input | Output) -> Layout | None:
        """None where DTensor has no word for how it is cut: then it is given and taken whole."""
        try:
            home = self._program.home(each) if each.kind != "input" and each.name in self._owners else None
            return Layout(self._world, self._mesh, each.shape, each.shards, DTYPES[each.dtype], home)
        except RunError:
            return None

    @contextmanager
    def _in_step(self) -> Iterator[None]:
        """Failures of this rank are told to the others, which would wait for it."""
        with self._step:
            try:
                with self._communicator.step():
                    yield
            except CollectiveError:
                raise  # the watchdog has told them
            except BaseException as error:
                self._world.watchdog.failed(str(error))
                raise


@cache
def _step() -> Step:
    """One for all sessions, because signal handlers belong to the process."""
    return Step()


def _tensors(program: Program) -> Iterator[Input | Output]:
    yield from (each for each in program.inputs if each.kind != "constant")
    yield from program.outputs


def _key(each: Input | Output) -> tuple[str, str, int | None]:
    """What tells a program's tensors of one direction apart."""
    return each.kind, each.name, each.index
