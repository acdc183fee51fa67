"""What one side of a check computes: outputs and gradients of the first step, parameters and buffers at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..program.program import Program
from .model_and_program import AllRanks, OneDevice, backward

ACCUMULATED = 2
"""Backwards before the first optimizer step, each of a batch and tangents of its own: their gradients add up."""
Inputs = Mapping[int | None, Tensor]
"""The user inputs of a step, by index."""
Forward = Callable[[Inputs], list[Tensor]]


@dataclass
class Recording:
    """The tensors of one side."""

    outputs: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Of parameters, in the first step; of inputs, in its last backward."""
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

    @property
    def have_floats(self) -> bool:
        """Whether some input is floating."""
        return any(value.is_floating_point() for inputs in self._inputs for value in inputs.values())

    def altered(self, alter: Callable[[Tensor], Tensor]) -> StepInputs:
        """The same inputs with their floating tensors altered; the tangents are the same."""
        changed: list[Inputs] = [
            {index: alter(value) if value.dtype.is_floating_point else value for index, value in inputs.items()}
            for inputs in self._inputs
        ]
        return StepInputs(self.draw, self.draw_tangents, self.steps, changed, self._tangents)


def record_once(program: Program, side: OneDevice | AllRanks, forward: Forward, given: StepInputs) -> Recording:
    """Let one side make the first forward, and its backward in train mode; no optimizer step."""
    inputs = _leaves(program, given.inputs(0))
    outputs = forward(inputs)
    recording = Recording(dict(zip(_names(program), (output.detach() for output in outputs), strict=True)))
    if program.manifest.mode == "train":
        backward(outputs, given.tangents(0, outputs))
        gradients = {name: gradient.detach().clone() for name, gradient in side.gradients().items()}
        recording.gradients = gradients | _input_gradients(program, inputs)
        side.clear()
    recording.buffers = dict(side.buffers if isinstance(side, AllRanks) else side.changed)
    return recording


def record(program: Program, side: OneDevice | AllRanks, forward: Forward, given: StepInputs) -> Recording:
    """Let one side take all steps; in infer mode one forward."""
    recording = Recording()
    names = _names(program)
    trains = program.manifest.mode == "train"
    count = 0
    for step in range(given.steps if trains else 1):
        for _ in range(ACCUMULATED if step == 0 and trains else 1):
            inputs = _leaves(program, given.inputs(count))
            outputs = forward(inputs)
            if count == 0:
                recording.outputs = dict(zip(names, (output.detach() for output in outputs), strict=True))
            if trains:
                backward(outputs, given.tangents(count, outputs))
            count += 1
        if trains:
            gradients = side.gradients()
            recording.note(gradients)
            if step == 0:
                copies = {name: gradient.detach().clone() for name, gradient in gradients.items()}
                recording.gradients = copies | _input_gradients(program, inputs)
            side.step()
    if trains:
        recording.parameters = {name: value.detach().clone() for name, value in side.whole().items()}
    recording.buffers = dict(side.buffers if isinstance(side, AllRanks) else side.changed)
    return recording


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
