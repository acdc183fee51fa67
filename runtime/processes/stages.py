"""Transfers between stages around a program's run: of results, and of parameters that another stage stores.

A parameter is stored on the stage where the model's first program uses it. Another program of the model, such as the
one for evaluation, may use it on another stage. Then each run sends it there, and its gradient back.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor

from ..program.arguments import DTYPES
from ..program.program import Program
from ..program.records import Input, Output
from ..rank.shards import local_shape
from .communicator import DistributedCommunicator
from .device_meshes import Stage
from .parameters import Layout, device_mesh_of
from .world import World


class Stages:
    """The transfers of one process. All processes call the same methods for the same tensors in the same order."""

    def __init__(self, program: Program, world: World, communicator: DistributedCommunicator) -> None:
        self._program = program
        self._world = world
        self._communicator = communicator
        self._own_stage = program.entry_of(world.rank).stage

    def computes(self, output: Output) -> bool:
        """Whether this process's stage computes a result."""
        return self._own_stage is None or output.stages is None or self._own_stage in output.stages

    def broadcast(self, output: Output, local: Tensor | None) -> Tensor:
        """This process's part of a result. The first stage that computes it sends it to stages that do not."""
        pipeline = self._program.pipeline
        if pipeline is None or output.stages is None:
            assert local is not None, "every rank computes it"
            return local
        value = local
        for stage in range(len(pipeline.entries)):
            if stage not in output.stages:
                received = self._transfer(output, local, output.stages[0], stage)
                value = received if received is not None else value
        assert value is not None, "it was computed or received"
        return value

    def other_stage(self, argument: Input, tensor: Tensor) -> int | None:
        """The stage that stores a parameter, if the program uses it on another one."""
        home = self._program.owning_stage(argument)
        if home is None or not isinstance(tensor, DTensor) or self._is_on(argument, tensor, home):
            return None
        axis, used = home
        others = (stage for stage in range(self._program.mesh.sizes[axis]) if stage != used)
        return next((stage for stage in others if self._is_on(argument, tensor, (axis, stage))), None)

    def fetch(self, argument: Input, tensor: DTensor, stage: int) -> Tensor | None:
        """This process's part of a parameter that `stage` stores; None where this process does not use it."""
        home = self._program.owning_stage(argument)
        assert home is not None, "it has a stage"
        own = self._layout(argument, stage).padded(tensor) if self._own_stage == stage else None
        return self._transfer(argument, own, stage, home[1])

    def return_gradient(self, output: Output, local: Tensor | None, stage: int) -> Tensor | None:
        """The gradient of a parameter that `stage` stores; None on processes of other stages."""
        home = self._program.owning_stage(output)
        assert home is not None, "it has a stage"
        received = self._transfer(output, local, home[1], stage)
        return None if received is None else self._layout(output, stage).dtensor(received)

    def _is_on(self, argument: Input, tensor: DTensor, stage: Stage) -> bool:
        mesh = device_mesh_of(argument.shards, self._program.mesh, self._world, stage)
        return tensor.device_mesh is mesh or tensor.device_mesh == mesh

    def _layout(self, record: Input | Output, stage: int) -> Layout:
        pipeline = self._program.pipeline
        assert pipeline is not None, "it has stages"
        coordinate = (pipeline.axis, stage)
        return Layout(self._world, self._program.mesh, record.shape, record.shards, DTYPES[record.dtype], coordinate)

    def _transfer(self, record: Input | Output, local: Tensor | None, source: int, destination: int) -> Tensor | None:
        """The tensor that the ranks of stage `destination` receive from those of stage `source`; None on others."""
        pipeline = self._program.pipeline
        assert pipeline is not None, "it has stages"
        where = f"sharing {record.kind} '{record.name or record.index}'"
        if self._own_stage == source and local is not None:
            self._communicator.send(local, pipeline.axis, destination, where)
        if self._own_stage != destination:
            return None
        shape = local_shape(record.shape, record.shards)
        return self._communicator.receive_start(pipeline.axis, source, shape, DTYPES[record.dtype], where).wait()
