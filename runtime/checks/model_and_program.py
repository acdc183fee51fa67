"""The two sides of a check: the model on one device, and the program on all its ranks; each with its AdamW."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..philox import RandomState
from ..program.program import Program
from ..program.records import Input, Reference
from ..program.reference import Promote, run_reference
from ..rank.autograd import run
from ..session import Session

LEARNING_RATE = 1e-3

Key = tuple[str, str]
"""(kind, name) of a tensor."""


class Side:
    """Parameters by name, and AdamW over those that are trained."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        self.parameters = parameters
        trained = [value for value in parameters.values() if value.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE) if trained else None

    def gradients(self) -> dict[str, Tensor]:
        """The gradients accumulated since the last step, by parameter."""
        return {name: value.grad for name, value in self.parameters.items() if value.grad is not None}

    def whole(self) -> dict[str, Tensor]:
        """The parameters as they are now, each of them global."""
        return dict(self.parameters)

    def step(self) -> None:
        """One step of the optimizer; the gradients are dropped."""
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad()


class OneDevice(Side, ABC):
    """The model on one device, whatever runs it: what the program must equal."""

    changed: Mapping[str, Tensor]
    """New values of buffers after the last forward, by name."""

    @abstractmethod
    def forward(self, inputs: Mapping[int | None, Tensor]) -> list[Tensor]:
        """The outputs for inputs by index; buffers are written back."""


class SingleDevice(OneDevice):
    """The reference; in float64 it is computed with every floating dtype raised."""

    def __init__(self, program: Program, reference: Reference, values: Mapping[Key, Tensor]) -> None:
        self._reference = reference
        self._promote = Promote.FLOAT64 if program.manifest.dtype == "float64" else Promote.NOTHING
        self._values = {key: value.clone() for key, value in values.items()}
        self._step = 0
        self.changed = {}
        trained = {each.name for each in program.of_kind("parameter") if each.requires_grad}
        named = {name: value for (kind, name), value in self._values.items() if kind == "parameter"}
        super().__init__({name: value.requires_grad_(name in trained) for name, value in named.items()})

    def forward(self, inputs: Mapping[int | None, Tensor]) -> list[Tensor]:
        """The outputs for inputs by index; buffers are written back."""
        given = [inputs[each.index] for each in self._reference.inputs if each.kind == "input"]
        state = {(each.kind, each.name): self._draws_from() for each in self._reference.inputs if each.kind == "random"}
        outputs, self.changed = run_reference(self._reference, self._values | state, given, self._promote)
        self._values.update({("buffer", name): value for name, value in self.changed.items()})
        return outputs

    def _draws_from(self) -> Tensor:
        self._step += 1
        return RandomState(step=self._step - 1).tensor()


class AllRanks(Side):
    """The program, seen from outside."""

    def __init__(self, session: Session, values: Mapping[Key, Tensor]) -> None:
        self._session = session
        self._forwards = 0
        self.program = program = session.program
        self._inputs = program.of_kind("input")
        self.buffers = {each.name: values["buffer", each.name].clone() for each in program.of_kind("buffer")}
        takes = program.of_kind("parameter")
        super().__init__({each.name: self.parameter(each, values["parameter", each.name]) for each in takes})

    def parameter(self, each: Input, value: Tensor) -> Tensor:
        """A parameter with this initial value, as the session's caller holds it."""
        return value.clone().requires_grad_(each.requires_grad)

    def forward(self, inputs: Mapping[int | None, Tensor]) -> list[Tensor]:
        """The outputs for inputs by index; buffers are written back."""
        given = [inputs[each.index] for each in self._inputs]
        self._session.random_state = RandomState(step=self._forwards)
        self._forwards += 1
        outputs, buffers = run(self._session, list(self.parameters.values()), list(self.buffers.values()), given)
        self.buffers.update(buffers)
        return outputs


def backward(outputs: Sequence[Tensor], tangents: Mapping[int, Tensor]) -> None:
    """Accumulate gradients, `tangents` being by position among the outputs."""
    wanted = [at for at in tangents if outputs[at].requires_grad]
    torch.autograd.backward([outputs[at] for at in wanted], [tangents[at].to(outputs[at].dtype) for at in wanted])
