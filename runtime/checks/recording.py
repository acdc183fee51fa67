"""What one side of a check computes: outputs and gradients, also with halved parameters; all parameters at the end.

Parameters are halved in place, as an optimizer writes into them: what a rank keeps of the old ones shows. This comes
before the first optimizer step, because AdamW moves the sides apart by the rounding of gradients near zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..program.program import Program
from .model_and_program import AllRanks, OneDevice, backward

ACCUMULATED = 2
"""Backwards whose gradients add up at the begin, each of a batch and tangents of its own."""
HALF = 0.5
Inputs = Mapping[int | None, Tensor]
"""The user inputs of a step, by index."""
Forward = Callable[[Inputs], list[Tensor]]


@dataclass
class Recording:
    """The tensors of one side."""

    outputs: dict[str, Tensor] = field(default_factory=dict)
    """Of the first forward, and of the one with halved parameters."""
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Of parameters, of the first backwards; of inputs, of the last of these; each once more with halved parameters."""
    parameters: dict[str, Tensor] = field(default_factory=dict)
    """After the last step."""
    buffers: dict[str, Tensor] = field(default_factory=dict)
    """Those that a step changes, after the last step."""
    smallest: dict[str, Tensor] = field(default_factory=dict)
    """By parameter, each element's smallest magnitude of a gradient over all steps."""
    largest: dict[str, float] = field(default_factory=dict)
    """By parameter, the largest magnitude of a gradient over all steps."""

    def tensors(self) -> Iterable[tuple[str, str, Tensor]]:
        """(kind, name, tensor) of all that is compared."""
        for kind, named in (
            ("output", self.outputs), ("gradient", self.gradients), ("parameter", self.parameters),
            ("buffer", self.buffers),
        ):  # fmt: skip
            yield from ((kind, name, tensor) for name, tensor in named.items())

    def note(self, gradients: Mapping[str, Tensor]) -> None:
        """Note the sizes of the parameters' gradients of one step."""
        for name, gradient in gradients.items():
            size = gradient.detach().double().abs()
            known = self.smallest.get(name)
            self.smallest[name] = size if known is None else torch.minimum(known, size)
            self.largest[name] = max(self.largest.get(name, 0.0), float(size.max()) if size.numel() else 0.0)


@dataclass
class StepInputs:
    """The inputs and tangents of every forward: drawn when the first side gets to it, and the same for the others."""

    draw: Callable[[], Inputs]
    draw_tangents: Callable[[Sequence[Tensor]], dict[int, Tensor]]
    """Given the outputs, for their shapes."""
    steps: int
    _inputs: list[Inputs] = field(default_factory=list)
    _tangents: list[dict[int, Tensor]] = field(default_factory=list)

    def inputs(self, forward: int) -> Inputs:
        """The batch of a forward."""
        while len(self._inputs) <= forward:
            self._inputs.append(self.draw())
        return self._inputs[forward]

    def tangents(self, forward: int, outputs: Sequence[Tensor]) -> dict[int, Tensor]:
        """The tangents of a forward, by position among the outputs."""
        while len(self._tangents) <= forward:
            self._tangents.append(self.draw_tangents(outputs))
        return self._tangents[forward]

    def are(self, others: StepInputs) -> bool:
        """Whether the inputs of others are these very tensors."""
        pairs = zip(self._inputs, others._inputs, strict=True)
        return all(own[index] is value for own, inputs in pairs for index, value in inputs.items())

    def altered(self, alter: Callable[[Tensor], Tensor]) -> StepInputs:
        """The same inputs with their floating tensors altered; the tangents are the same."""
        return self.in_regime(lambda value: alter(value) if value.dtype.is_floating_point else value)

    def in_regime(self, change: Callable[[Tensor], Tensor]) -> StepInputs:
        """The same inputs, each changed; the tangents are the same."""
        changed: list[Inputs] = [{index: change(value) for index, value in inputs.items()} for inputs in self._inputs]
        return StepInputs(self.draw, self.draw_tangents, self.steps, changed, self._tangents)


def record_once(program: Program, side: OneDevice | AllRanks, forward: Forward, step_inputs: StepInputs) -> Recording:
    """Let one side make the first forward, and its backward in train mode; no optimizer step."""
    inputs = _leaves(program, step_inputs.inputs(0))
    outputs = forward(inputs)
    recording = Recording(dict(zip(_names(program), (output.detach() for output in outputs), strict=True)))
    if program.manifest.mode == "train":
        backward(outputs, step_inputs.tangents(0, outputs))
        gradients = {name: gradient.detach().clone() for name, gradient in side.gradients().items()}
        recording.gradients = gradients | _input_gradients(program, inputs)
        side.clear()
    recording.buffers = dict(side.buffers if isinstance(side, AllRanks) else side.changed)
    return recording


def record(program: Program, side: OneDevice | AllRanks, forward: Forward, step_inputs: StepInputs) -> Recording:
    """Let one side compute with its first parameters, then with halved ones, then take all steps if it trains."""
    recording, trains = Recording(), program.manifest.mode == "train"
    forwards = _Forwards(program, forward, step_inputs)
    recording.outputs = forwards.run()
    if trains:
        for _ in range(1, ACCUMULATED):
            forwards.run()
        recording.gradients = forwards.gradients(side)
        side.clear()
    side.scale(HALF)
    recording.outputs |= _with_halved_parameters(forwards.run())
    if trains:
        recording.gradients |= _with_halved_parameters(forwards.gradients(side))
        for step in range(step_inputs.steps):
            if step > 0:
                forwards.run()
            recording.note(side.gradients())
            side.step()
        recording.parameters = {name: value.detach().clone() for name, value in side.whole().items()}
    recording.buffers = dict(side.buffers if isinstance(side, AllRanks) else side.changed)
    return recording


class _Forwards:
    """The forwards of one side, each with its backward in train mode."""

    def __init__(self, program: Program, forward: Forward, step_inputs: StepInputs) -> None:
        self._program, self._forward, self._step_inputs = program, forward, step_inputs
        self._count = 0
        self._inputs: Inputs = {}

    def run(self) -> dict[str, Tensor]:
        """The outputs of the next one, by name."""
        self._inputs = _leaves(self._program, self._step_inputs.inputs(self._count))
        outputs = self._forward(self._inputs)
        if self._program.manifest.mode == "train":
            backward(outputs, self._step_inputs.tangents(self._count, outputs))
        self._count += 1
        return dict(zip(_names(self._program), (output.detach() for output in outputs), strict=True))

    def gradients(self, side: OneDevice | AllRanks) -> dict[str, Tensor]:
        """Copies of those that parameters have now, and of those of the last forward's inputs."""
        copies = {name: gradient.detach().clone() for name, gradient in side.gradients().items()}
        return copies | _input_gradients(self._program, self._inputs)


def _with_halved_parameters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name} (parameters halved)": tensor for name, tensor in tensors.items()}


def _names(program: Program) -> list[str]:
    return [output.name or str(output.index) for output in program.results_of_kind("output")]


def _leaves(program: Program, inputs: Inputs) -> dict[int | None, Tensor]:
    """The inputs of one side; those that require a gradient are copies of its own."""
    differentiable = {argument.index for argument in program.of_kind("input") if argument.requires_grad}
    return {
        index: value.clone().requires_grad_() if index in differentiable else value for index, value in inputs.items()
    }


def _input_gradients(program: Program, inputs: Inputs) -> dict[str, Tensor]:
    pairs = (
        (argument.name, inputs[argument.index].grad) for argument in program.of_kind("input") if argument.requires_grad
    )
    return {name: gradient for name, gradient in pairs if gradient is not None}
