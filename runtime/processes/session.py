"""The session whose ranks are processes: this process is one rank, with its part of parameters and outputs."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..devices import require_memory
from ..errors import RunError
from ..philox import RngState
from ..program.arguments import DTYPES
from ..program.program import Program
from ..program.records import Input, Output
from ..rank.executor import Executor, Frame
from ..rank.replicas import compare_replicas
from ..rank.shards import in_order, local_tensor, sharding_axes, valid_part
from ..rank.state_writes import is_same, settled
from ..rank.unreduced_gradients import Reduction, UnreducedGradients
from ..session import State, check_arguments, tangents_or_zero
from ..threads.session import Replicas, constants_of
from .communicator import DistributedCommunicator, Phase, groups_of
from .parameters import Layout, has_local_part, placement_of
from .stages import Stages
from .termination import Step
from .world import World, join

_HASH_SHOWN = 12
"""Characters of a program's hash in errors."""


@dataclass(frozen=True)
class _Saved:
    """What a backward needs from its forward."""

    frame: Frame
    distributed: frozenset[str]
    """The arguments that were DTensors, whose gradients are DTensors, too."""
    other_stages: Mapping[str, int]
    """By parameter that is stored on another stage than the one that uses it: that other stage."""


class ProcessRank:
    """A `Session` in which this process is one rank. All processes make one, of the same program.

    Plain tensors are global: each process takes its part, and results for them are global. DTensor parameters get
    DTensor gradients. Sharded outputs are DTensors. A step writes into the local parts of states that are DTensors.
    """

    def __init__(
        self, program: Program, *, timeout_s: float | None = None, replicas: Replicas = Replicas.TRUST
    ) -> None:
        self._program = program.validated
        self._mesh = program.mesh
        self._replicas = replicas
        self._hash = program.hash[:_HASH_SHOWN]
        self._phases = _phases(program)
        self._owners = {argument.name: argument for argument in program.of_kind("parameter")}
        self._world = join(program.manifest.target, timeout_s)
        with self._world.call("the start of a program", self._details):
            self._world.check_same_program(program)
            require_memory(program, self._world.rank, self._world.device)
            self._messages = None if program.pipeline is None else self._world.messages
            groups = [*groups_of(program), *self._groups_of_results()]
            self._communicator = DistributedCommunicator(
                self._world,
                self._mesh,
                groups,
                messages=self._messages,
                program=self._world.next_program(),
                phases=self._phases,
            )
            self._executor = Executor(program, self._communicator, self._world.device)
            self._stages = Stages(program, self._world, self._communicator)
            self._layouts = {_key(record): self._layout(record) for record in _tensors(program)}
        constants = zip(program.of_kind("constant"), constants_of(program), strict=True)
        self._constants = {argument.name: self._part(argument, tensor) for argument, tensor in constants}
        self.rng_state = RngState()
        self._copies_states = bool(program.results_of_kind("gradient"))
        """Whether a backward may read the old value of a state."""
        self.copied_state_bytes = 0
        """Bytes of states that are DTensors which were copied, not written in place, since the session began."""
        self._step = _step()
        self._distributed: frozenset[str] = frozenset()
        """The arguments of the last forward that were DTensors."""
        self._other_stages: dict[str, int] = {}
        """See `_Saved.other_stages`; of the last forward."""

    @property
    def program(self) -> Program:
        """The program that it runs."""
        return self._program

    @property
    def world(self) -> World:
        """The processes that it runs on."""
        return self._world

    def forward(
        self,
        parameters: Sequence[Tensor],
        buffers: Sequence[Tensor],
        inputs: Sequence[Tensor],
        *,
        states: Sequence[Tensor] = (),
        scale: float = 1.0,
    ) -> tuple[list[Tensor], State]:
        """See `Session.forward`."""
        tensors_by_kind = {"parameter": parameters, "buffer": buffers, "state": states, "input": inputs}
        for kind, tensors in tensors_by_kind.items():
            check_arguments(kind, self._program.of_kind(kind), tensors, self._mesh)
        tensors_by_kind["random"] = [self.rng_state.tensor() for _ in self._program.of_kind("random")]
        tangents = self._program.of_kind("tangent")
        tensors_by_kind["tangent"] = [
            torch.full(argument.shape, scale, dtype=DTYPES[argument.dtype]) for argument in tangents
        ]
        remaining = {kind: iter(tensors) for kind, tensors in tensors_by_kind.items()}
        arguments = [argument for argument in self._program.inputs if argument.kind in remaining]
        values = {(argument.kind, argument.name): next(remaining[argument.kind]) for argument in arguments}
        entry = self._executor.entry
        with torch.no_grad(), self._in_step("forward"):
            fetched = self._fetch_parameters(parameters)
            known = {("constant", name): value for name, value in self._constants.items()}
            known |= {("parameter", name): value for name, value in fetched.items()}
            resident = self._resident_states(states)
            local = []
            for argument in entry.forward_inputs:
                key = argument.kind, argument.name
                part = known[key] if key in known else self._part(argument, values[key])
                stays = argument.kind == "state" and argument.name in resident and not self._copies_states
                local.append(part.clone() if argument.kind == "state" and not stays else part)
            results, frame = self._executor.forward(local)
            self._check_replicas(entry.forward_outputs, results)
            pairs = list(zip(entry.forward_outputs, results, strict=True))
            own = {_key(output): result for output, result in pairs}
            self._store([(resident[o.name], new) for o, new in pairs if o.kind == "state" and o.name in resident])
            outputs, new_buffers = [], {}
            for output in self._program.outputs:
                if output.kind == "output":
                    outputs.append(self._output(output, self._stages.broadcast(output, own.get(_key(output)))))
                elif output.kind in ("buffer", "state") and output.name not in resident:
                    buffer = self._stages.broadcast(output, own.get(_key(output)))
                    new_buffers[output.name] = self._gathered(output, buffer).clone()
        self._distributed = frozenset(name for (_, name), tensor in values.items() if isinstance(tensor, DTensor))
        return outputs, State(new_buffers, _Saved(frame, self._distributed, dict(self._other_stages)))

    def backward(
        self, state: State, tangents: Sequence[Tensor | None], unreduced: UnreducedGradients | None = None
    ) -> dict[str, Tensor]:
        """See `Session.backward`."""
        tangent_arguments = self._program.of_kind("tangent")
        gradient_outputs = self._program.results_of_kind("gradient")
        saved = state.saved
        if not gradient_outputs or not isinstance(saved, _Saved):
            raise RunError("E0333", "the program was compiled for inference: it has no backward", help="--mode train")
        tangent_tensors = tangents_or_zero(tangent_arguments, tangents, self._mesh)
        with torch.no_grad(), self._in_step("backward", Phase.BACKWARD):
            local = [
                self._part(argument, tensor)
                for argument, tensor in zip(tangent_arguments, tangent_tensors, strict=True)
            ]
            entry = self._executor.entry
            results = self._executor.backward(saved.frame, local)
            self._check_replicas(entry.gradients, results)
            used = {tensor.untyped_storage().data_ptr() for tensor in local}
            results_by_name = {output.name: result for output, result in zip(entry.gradients, results, strict=True)}
            gradients: dict[str, Tensor] = {}
            sums = UnreducedGradients() if unreduced is None else unreduced
            for output in gradient_outputs:
                result = results_by_name.get(output.name)
                if result is not None and result.untyped_storage().data_ptr() in used:
                    result = result.clone()
                if result is not None:
                    used.add(result.untyped_storage().data_ptr())
                if output.unreduced_over:
                    sums.add(output, self._world.rank, torch.empty(0) if result is None else result)
                else:
                    self._deliver(gradients, output, result, self._layouts[_key(output)], saved)
        return gradients if unreduced is not None else gradients | self.reduce(sums)

    def reduce(self, unreduced: UnreducedGradients, names: Container[str] | None = None) -> dict[str, Tensor]:
        """See `Session.reduce`. All processes must call it at the same point. DTensor parameters get DTensors."""
        gradients: dict[str, Tensor] = {}
        last = _Saved(Frame([]), self._distributed, self._other_stages)
        with torch.no_grad(), self._in_step("reduction of gradients", Phase.BACKWARD):
            for output, by_rank in unreduced.take(names):
                owner = self._owners[output.name]
                computes = self._stages.computes(output)
                local = self._reduced(output, owner, by_rank[self._world.rank]) if computes else None
                as_owner = replace(output, shards=owner.shards)
                self._deliver(gradients, as_owner, local, self._layouts[_key(owner)], last)
        return gradients

    def _reduced(self, output: Output, owner: Input, local: Tensor) -> Tensor:
        """The sum of an unreduced gradient over ranks: this rank's part of it, as that of its parameter."""
        where = f"reducing gradient '{output.name}'"
        reduction = Reduction.of(output, owner.shards, self._mesh)
        for axes, dim in reduction.scatters:
            local = self._communicator.reduce_scatter_start(local, axes, dim, "sum", where).wait()
        local = self._communicator.all_reduce_start(local, reduction.all_reduced, "sum", where).wait()
        if reduction.scatters or owner.shards == output.shards:
            return local
        return local_tensor(self._gathered(output, local), owner.shards, self._mesh, self._world.rank)

    def holds(self, parameter: Tensor) -> bool:
        """See `Session.holds`."""
        return has_local_part(parameter)

    def close(self) -> None:
        """Do nothing: connections belong to the process."""

    def __enter__(self) -> ProcessRank:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _part(self, argument: Input, tensor: Tensor) -> Tensor:
        """The local tensor that this rank's program takes for an argument."""
        if not isinstance(tensor, DTensor):
            return local_tensor(tensor.detach(), argument.shards, self._mesh, self._world.rank).to(self._world.device)
        layout = self._layouts[_key(argument)]
        if argument.kind == "parameter" and not layout.matches(tensor):
            raise RunError(
                "E0356",
                f"parameter '{argument.name}' is placed as {placement_of(tensor)}, "
                f"but the program was compiled for {layout}",
                help="compile with the plan that distributed the parameters",
            )
        return layout.padded(tensor if argument.kind == "parameter" else layout.redistributed(tensor))

    def _output(self, output: Output, local: Tensor) -> Tensor:
        layout = self._layouts[_key(output)]
        if not output.shards:
            return self._gathered(output, local).clone()
        return layout.dtensor(local.clone())

    def _deliver(
        self, gradients: dict[str, Tensor], output: Output, local: Tensor | None, layout: Layout, saved: _Saved
    ) -> None:
        """Add the caller's form of one gradient to `gradients`; nothing for a DTensor parameter of another stage."""
        if output.name in saved.other_stages:
            gradient = self._stages.return_gradient(output, local, saved.other_stages[output.name])
        elif output.name not in saved.distributed:
            gradient = self._gathered(output, self._stages.broadcast(output, local))
        elif output.name in self._owners:
            gradient = None if local is None else layout.dtensor(local)
        else:
            gradient = layout.dtensor(self._stages.broadcast(output, local))
        if gradient is not None:
            gradients[output.name] = gradient

    def _resident_states(self, states: Sequence[Tensor]) -> dict[str, Tensor]:
        """This process's parts of states that the caller keeps as DTensors as the program places them.

        A step writes into their memory. Of other states, which are global tensors, it takes copies and gathers them.
        """
        return {
            argument.name: tensor.to_local()
            for argument, tensor in zip(self._program.of_kind("state"), states, strict=True)
            if isinstance(tensor, DTensor) and self._layouts[_key(argument)].is_part(tensor)
        }

    def _store(self, states: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Copy new values of states, each beside its part, that were not written in place."""
        parts = [part for part, _ in states]
        for part, value in zip(parts, settled(parts, [value for _, value in states]), strict=True):
            if not is_same(value, part):
                part.copy_(value)
                self.copied_state_bytes += part.nbytes

    def _fetch_parameters(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        """This process's parts of parameters that are stored on another stage than the one that uses them."""
        self._other_stages = {}
        fetched: dict[str, Tensor] = {}
        for argument, tensor in zip(self._program.of_kind("parameter"), parameters, strict=True):
            stage = self._stages.other_stage(argument, tensor)
            if stage is not None and isinstance(tensor, DTensor):
                self._other_stages[argument.name] = stage
                received = self._stages.fetch(argument, tensor, stage)
                fetched.update({} if received is None else {argument.name: received})
        return fetched

    def _groups_of_results(self) -> Iterator[tuple[str, ...]]:
        """The axes over which results are gathered, reduced and compared; all processes connect them in this order."""
        for output in self._program.outputs:
            yield from (shard.axes for shard in output.shards)
            if output.unreduced_over:
                reduction = Reduction.of(output, self._owners[output.name].shards, self._mesh)
                yield from (axes for axes, _ in reduction.scatters)
                yield reduction.all_reduced
            if self._replicas is not Replicas.TRUST:
                yield self._replica_axes(output)

    def _replica_axes(self, output: Output) -> tuple[str, ...]:
        """The axes along which a result is replicated over the ranks that have it."""
        others = {*sharding_axes(output.shards), *output.unreduced_over, *self._program.primary_coordinates(output)}
        return tuple(axis for axis, size in self._mesh.axes if axis not in others and size > 1)

    def _gathered(self, output: Output, local: Tensor) -> Tensor:
        """The global tensor of a result, all-gathered over its shards."""
        for shard in output.shards:
            where = f"gathering {output.kind} '{output.name or output.index}'"
            local = self._communicator.all_gather_start(local, shard.axes, shard.dim, where).wait()
            local = in_order(local, shard, self._mesh.size(shard.axes))
        return local

    def _check_replicas(self, outputs: Sequence[Output], results: Sequence[Tensor]) -> None:
        """Unless replicas are trusted, compare those of every result. Raises RunError E0330."""
        if self._replicas is Replicas.TRUST:
            return
        for output, local in zip(outputs, results, strict=True):
            others = self._replica_axes(output)
            own = valid_part(local, output.shards, self._mesh, self._world.rank)
            where = f"comparing replicas of {output.kind} '{output.name or output.index}'"
            copies = self._communicator.all_gather_start(own[None], others, 0, where).wait()
            for rank, copy in zip(self._mesh.group(self._world.rank, others), copies, strict=True):
                compare_replicas(output, copies[0], copy, rank)

    def _layout(self, record: Input | Output) -> Layout:
        is_parameter = record.kind != "input" and record.name in self._owners
        stage = self._program.owning_stage(record) if is_parameter else None
        return Layout(self._world, self._mesh, record.shape, record.shards, DTYPES[record.dtype], stage)

    @contextmanager
    def _in_step(self, what: str, phase: Phase = Phase.FORWARD) -> Iterator[None]:
        """A context that reports failures of this rank to the others, which would wait for it."""
        with self._step, self._world.call(what, self._details):
            self._world.calls.note(program=self._hash)
            self._communicator.phase = phase if phase in self._phases else Phase.FORWARD
            with self._communicator.step():
                yield

    def _details(self) -> dict[str, str]:
        return {"program": self._hash}


def _phases(program: Program) -> tuple[Phase, ...]:
    """The phases that communicate: with a pipeline, and in inference, there is no backward after the forward."""
    has_backward = program.pipeline is None and bool(program.results_of_kind("gradient"))
    return tuple(Phase) if has_backward else (Phase.FORWARD,)


@cache
def _step() -> Step:
    """One `Step` for all sessions, because signal handlers belong to the process."""
    return Step()


def _tensors(program: Program) -> Iterator[Input | Output]:
    yield from (argument for argument in program.inputs if argument.kind != "constant")
    yield from program.outputs


def _key(record: Input | Output) -> tuple[str, str, int | None]:
    """The identity of a tensor among a program's inputs, or among its outputs."""
    return record.kind, record.name, record.index
