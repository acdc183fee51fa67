"""A program on ranks that are processes: this process is one of them, and holds its part of parameters and outputs."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from .addends import Addends
from .arguments import DTYPES
from .distributed import DistributedCommunicator, groups_of
from .errors import CollectiveError, RunError
from .executor import Executor, Frame
from .interface import State, check_given, tangents_or_zero
from .parameters import Layout
from .philox import RandomState
from .program import Program
from .records import Input, Output
from .replicas import compare_replicas
from .session import Replicas, constants_of
from .shards import cut, sharding_axes, valid_part
from .termination import Step
from .world import World, join


@dataclass(frozen=True)
class _Kept:
    """What a backward needs: the frame, and which arguments were DTensors, so that their gradients are too."""

    frame: Frame
    distributed: frozenset[str]


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
        self._communicator = DistributedCommunicator(self._world, self._mesh, groups_of(program))
        self._executor = Executor(program, self._communicator, self._world.device)
        self._layouts = {(each.kind, each.name, each.index): self._layout(each) for each in _tensors(program)}
        constants = zip(program.of_kind("constant"), constants_of(program), strict=True)
        self._constants = [self._part(each, tensor) for each, tensor in constants]
        self.random_state = RandomState()
        self._step = _step()
        self._distributed: frozenset[str] = frozenset()
        """Which arguments of the last forward were DTensors."""

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
        queues = {kind: iter(tensors) for kind, tensors in given.items()}
        takes = [each for each in self._program.inputs if each.kind in queues]
        whole = {(each.kind, each.name): next(queues[each.kind]) for each in takes}
        with torch.no_grad(), self._in_step():
            constants = iter(self._constants)
            local = [
                next(constants) if each.kind == "constant" else self._part(each, whole[each.kind, each.name])
                for each in self._program.inputs
                if each.kind != "tangent"
            ]
            results, frame = self._executor.forward(local)
            gives = [each for each in self._program.outputs if each.kind != "gradient"]
            self._compare(gives, results)
            outputs = [self._given_out(each, one) for each, one in zip(gives, results, strict=True) if _is_output(each)]
            changed = {
                each.name: self._whole(each, one).clone()
                for each, one in zip(gives, results, strict=True)
                if each.kind == "buffer"
            }
        self._distributed = frozenset(name for (_, name), tensor in whole.items() if isinstance(tensor, DTensor))
        return outputs, State(changed, _Kept(frame, self._distributed))

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
            results = self._executor.backward(kept.frame, local)
            self._compare(gives, results)
            used = {tensor.untyped_storage().data_ptr() for tensor in local}
            gradients = {}
            waiting = Addends() if addends is None else addends
            for each, result in zip(gives, results, strict=True):
                own = result.clone() if result.untyped_storage().data_ptr() in used else result
                used.add(own.untyped_storage().data_ptr())
                if each.addends:
                    waiting.add(each, self._world.rank, own)
                else:
                    gradients[each.name] = self._gradient(each, own, each.name in kept.distributed)
        return gradients if addends is not None else gradients | self.reduce(waiting)

    def reduce(self, addends: Addends, wanted: Container[str] | None = None) -> dict[str, Tensor]:
        """See `Session.reduce`; every process must call it at the same point. A DTensor parameter's is a DTensor."""
        gradients = {}
        with torch.no_grad(), self._in_step():
            for each, by_rank in addends.take(wanted):
                where = f"reducing gradient '{each.name}'"
                local = by_rank[self._world.rank]
                local = self._communicator.all_reduce_start(local, each.addends, "sum", where).wait()
                gradients[each.name] = self._reduced(each, local)
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
        layout = self._layouts[each.kind, each.name, each.index]
        if layout is None:
            return self._part(each, tensor.full_tensor())
        if each.kind == "parameter" and not layout.fits(tensor):
            raise RunError(
                "E0356",
                f"parameter '{each.name}' is placed as {_say(tensor)}, the program was compiled for "
                f"{', '.join(str(placement) for placement in layout.placements)}",
                help="compile with the plan that distributed the parameters",
            )
        return layout.padded(tensor if each.kind == "parameter" else layout.moved(tensor))

    def _given_out(self, each: Output, local: Tensor) -> Tensor:
        layout = self._layouts[each.kind, each.name, each.index]
        if layout is None or not each.shards:
            return self._whole(each, local).clone()
        return layout.dtensor(local.clone())

    def _gradient(self, each: Output, local: Tensor, distributed: bool) -> Tensor:
        layout = self._layouts[each.kind, each.name, each.index]
        if not distributed or layout is None:
            return self._whole(each, local)
        return layout.dtensor(local)

    def _reduced(self, each: Output, local: Tensor) -> Tensor:
        """What the caller gets of a gradient that was summed, cut as its parameter is."""
        owner = next(takes for takes in self._program.of_kind("parameter") if takes.name == each.name)
        layout = self._layouts[owner.kind, owner.name, owner.index]
        if each.name not in self._distributed or layout is None:
            return self._whole(each, local)
        if owner.shards != each.shards:
            local = cut(self._whole(each, local), owner.shards, self._mesh, self._world.rank)
        return layout.dtensor(local)

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
            cutting = sharding_axes(each.shards)
            others = tuple(axis for axis, size in self._mesh.axes if axis not in cutting and size > 1)
            own = valid_part(local, each.shards, self._mesh, self._world.rank)
            where = f"comparing replicas of {each.kind} '{each.name or each.index}'"
            copies = self._communicator.all_gather_start(own[None], others, 0, where).wait()
            for rank, copy in zip(self._mesh.group(self._world.rank, others), copies, strict=True):
                compare_replicas(each, copies[0], copy, rank)

    def _layout(self, each: Input | Output) -> Layout | None:
        """None where DTensor has no word for how it is cut: then it is given and taken whole."""
        try:
            return Layout(self._world, self._mesh, each.shape, each.shards, DTYPES[each.dtype])
        except RunError:
            return None

    @contextmanager
    def _in_step(self) -> Iterator[None]:
        """Failures of this rank are told to the others, which would wait for it."""
        with self._step:
            try:
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


def _is_output(each: Output) -> bool:
    return each.kind == "output"


def _say(tensor: DTensor) -> str:
    return ", ".join(str(placement) for placement in tensor.placements)
