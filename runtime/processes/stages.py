"""What the processes of different stages give each other around a program's run: results, and parameters elsewhere.

A parameter stands on the stage that the first program of a model gave it. Another program of that model, such as the
one for evaluation, may use it on another stage: then it is sent there at each run, and its gradient is sent back.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor

from ..program.arguments import DTYPES
from ..program.program import Program
from ..program.records import Input, Output
from ..rank.shards import local_shape
from .communicator import DistributedCommunicator
from .parameters import Layout
from .world import World


class Stages:
    """One process's view of a program; all processes call the same methods for the same tensors in the same order."""

    def __init__(self, program: Program, world: World, communicator: DistributedCommunicator) -> None:
        self._program = program
        self._world = world
        self._communicator = communicator
        self._own = program.entry_of(world.rank).stage

    def has(self, each: Output) -> bool:
        """Whether this process's stage gives a result."""
        return self._own is None or each.stages is None or self._own in each.stages

    def everywhere(self, each: Output, local: Tensor | None) -> Tensor:
        """This process's part of a result, which one stage sends to those that do not give it."""
        turns = self._program.pipeline
        if turns is None or each.stages is None:
            assert local is not None, "every rank gives it"
            return local
        found = local
        for stage in range(len(turns.entries)):
            if stage not in each.stages:
                came = self._sent(each, local, each.stages[0], stage)
                found = came if came is not None else found
        assert found is not None, "it was given or received"
        return found

    def elsewhere(self, each: Input, tensor: Tensor) -> int | None:
        """The stage that a parameter stands on, if the program uses it on another one."""
        home = self._program.home(each)
        if home is None or not isinstance(tensor, DTensor) or self._stands_on(tensor, home):
            return None
        axis, used = home
        others = (stage for stage in range(self._program.mesh.sizes[axis]) if stage != used)
        return next((stage for stage in others if self._stands_on(tensor, (axis, stage))), None)

    def brought(self, each: Input, tensor: DTensor, stage: int) -> Tensor | None:
        """This process's part of a parameter that stands on another stage; None where the program does not use it."""
        home = self._program.home(each)
        assert home is not None, "it has a stage"
        own = self._layout(each, stage).padded(tensor) if self._own == stage else None
        return self._sent(each, own, stage, home[1])

    def back(self, each: Output, local: Tensor | None, stage: int) -> Tensor | None:
        """The gradient of a parameter that stands on another stage; None where that is not this process's."""
        home = self._program.home(each)
        assert home is not None, "it has a stage"
        came = self._sent(each, local, home[1], stage)
        return None if came is None else self._layout(each, stage).dtensor(came)

    def _stands_on(self, tensor: DTensor, stage: tuple[str, int]) -> bool:
        mesh = self._world.device_mesh(self._program.mesh, stage)
        return tensor.device_mesh is mesh or tensor.device_mesh == mesh

    def _layout(self, each: Input | Output, stage: int) -> Layout:
        turns = self._program.pipeline
        assert turns is not None, "it has stages"
        at = (turns.axis, stage)
        return Layout(self._world, self._program.mesh, each.shape, each.shards, DTYPES[each.dtype], at)

    def _sent(self, each: Input | Output, local: Tensor | None, source: int, destination: int) -> Tensor | None:
        """What the ranks of `destination` receive from those of `source`; None on all others."""
        turns = self._program.pipeline
        assert turns is not None, "it has stages"
        where = f"sharing {each.kind} '{each.name or each.index}'"
        if self._own == source and local is not None:
            self._communicator.send(local, turns.axis, destination, where)
        if self._own != destination:
            return None
        shape = local_shape(each.shape, each.shards)
        return self._communicator.receive_start(turns.axis, source, shape, DTYPES[each.dtype], where).wait()
