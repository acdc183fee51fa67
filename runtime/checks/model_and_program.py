"""The two sides of a check: the model on one device, and the program on all its ranks, each with its own AdamW."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..philox import RngState
from ..program.program import Program
from ..program.records import Input
from ..program.reference import Promote, run_reference
from ..program.reference_records import Reference
from ..rank.autograd import run
from ..session import Session
from .reference_draws import reference_draw
from .report import CheckRow

LEARNING_RATE = 1e-3

Key = tuple[str, str]
"""(kind, name) of a tensor."""


_SEED = 0x9E3779B97F4A7C15
"""Of the RNG state: both halves of the key have bits, so that a draw that leaves one out differs."""
_FIRST_STEP = (1 << 31) + (1 << 17) + (1 << 9) + 1
"""Of the RNG state: a step with bits beyond 8 and 16, as late in a training."""


def rng_state(forwards: int) -> RngState:
    """The RNG state of a program's next forward."""
    return RngState(_SEED, _FIRST_STEP + forwards)


def rng_state_on_one_device(program: Program, forwards: int) -> RngState:
    """The RNG state of the next forward on one device, which has one for each separate microbatch.

    Of M, microbatch m of a program's forward draws in step `step * M + m`.
    """
    pipeline = program.pipeline
    parts = pipeline.microbatches if pipeline is not None and pipeline.separate_microbatches else 1
    return RngState(_SEED, _FIRST_STEP * parts + forwards)


class Side:
    """One side of a check: parameters by name, and AdamW over the trained ones."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        self.parameters = parameters
        trained = [value for value in parameters.values() if value.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE) if trained else None

    def gradients(self) -> dict[str, Tensor]:
        """The gradients accumulated since the last step, by parameter name."""
        return {name: value.grad for name, value in self.parameters.items() if value.grad is not None}

    def whole(self) -> dict[str, Tensor]:
        """The current global parameters, by name."""
        return dict(self.parameters)

    def step(self) -> None:
        """One optimizer step; clears the gradients."""
        if self._optimizer is not None:
            self._optimizer.step()
        self.clear()

    def scale(self, factor: float) -> None:
        """Multiply every floating parameter in place, trained or not."""
        with torch.no_grad():
            for value in self.parameters.values():
                if value.is_floating_point():
                    value.mul_(factor)

    def clear(self) -> None:
        """Clear the gradients."""
        if self._optimizer is not None:
            self._optimizer.zero_grad()


class OneDevice(Side, ABC):
    """The expected side: the model on one device, as the reference or as the live model."""

    changed: Mapping[str, Tensor]
    """New values of buffers from the last forward, by name."""

    @abstractmethod
    def forward(self, inputs: Mapping[int | None, Tensor]) -> list[Tensor]:
        """The outputs for inputs by index; buffers are written back."""

    def findings(self) -> Sequence[CheckRow]:
        """What this side finds of the program beside the tensors that both compute; asked for after its forwards."""
        return ()


class SingleDevice(OneDevice):
    """The program's reference. For a float64 program every floating dtype in it is raised to float64."""

    def __init__(self, program: Program, reference: Reference, values: Mapping[Key, Tensor]) -> None:
        self._program, self._reference = program, reference
        self._promote = Promote.FLOAT64 if program.manifest.dtype == "float64" else Promote.NOTHING
        self._values = {key: value.clone() for key, value in values.items()}
        self._step = 0
        self.changed = {}
        trained = {argument.name for argument in program.of_kind("parameter") if argument.requires_grad}
        named = {name: value for (kind, name), value in self._values.items() if kind == "parameter"}
        super().__init__({name: value.requires_grad_(name in trained) for name, value in named.items()})

    def forward(self, inputs: Mapping[int | None, Tensor]) -> list[Tensor]:
        """The outputs for inputs by index; buffers are written back."""
        user_inputs = [inputs[argument.index] for argument in self._reference.inputs if argument.kind == "input"]
        state = {
            (argument.kind, argument.name): self._draws_from()
            for argument in self._reference.inputs
            if argument.kind == "random"
        }
        outputs, self.changed = run_reference(
            self._reference, self._values | state, user_inputs, self._promote, reference_draw
        )
        self._values.update({("buffer", name): value for name, value in self.changed.items()})
        return outputs

    def _draws_from(self) -> Tensor:
        self._step += 1
        return rng_state_on_one_device(self._program, self._step - 1).tensor()


class AllRanks(Side):
    """The program's side: a session, called like a model."""

    def __init__(self, session: Session, values: Mapping[Key, Tensor]) -> None:
        self._session = session
        self._forwards = 0
        self.program = program = session.program
        self._inputs = program.of_kind("input")
        self.buffers = {
            argument.name: values["buffer", argument.name].clone()
            for argument in program.inputs
            if argument.kind in ("buffer", "state")
        }
        """Also states, which a step changes in place."""
        parameters = program.of_kind("parameter")
        super().__init__(
            {argument.name: self.parameter(argument, values["parameter", argument.name]) for argument in parameters}
        )

    def parameter(self, argument: Input, value: Tensor) -> Tensor:
        """A parameter with this initial value, in the form that the session's caller has."""
        return value.clone().requires_grad_(argument.requires_grad)

    def forward(self, inputs: Mapping[int | None, Tensor]) -> list[Tensor]:
        """The outputs for inputs by index; buffers are written back."""
        user_inputs = [inputs[argument.index] for argument in self._inputs]
        self._session.rng_state = rng_state(self._forwards)
        self._forwards += 1
        buffers, states = (
            [self.buffers[argument.name] for argument in self.program.of_kind(kind)] for kind in ("buffer", "state")
        )
        outputs, changed = run(self._session, list(self.parameters.values()), buffers, user_inputs, states=states)
        self.buffers.update(changed)
        return outputs


def backward(outputs: Sequence[Tensor], tangents: Mapping[int, Tensor]) -> None:
    """Accumulate gradients; `tangents` are by index of the output."""
    differentiable = [index for index in tangents if outputs[index].requires_grad]
    torch.autograd.backward(
        [outputs[index] for index in differentiable],
        [tangents[index].to(outputs[index].dtype) for index in differentiable],
    )
