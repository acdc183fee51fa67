"""The check of a program against the model on one device.

Both sides start from the same seeded random values (`random_values.py`) and take the same AdamW steps, each step on a
batch of its own. Compared are outputs and gradients of the first step, then parameters and buffers after the last.
Errors are relative to the largest magnitude of the reference tensor.

AdamW divides a gradient by its own magnitude, so the rounding of a gradient near zero decides its step. The accepted
error of gradients is therefore carried through the update: an element may differ by a further
lr * steps * min(2, accepted gradient error / |gradient|). A row that needs this has a note.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import RunError
from ..program.arguments import DTYPES, Json
from ..program.program import Program
from ..program.records import Input, Reference, ReferenceInput
from ..session import Session
from ..threads.session import RankThreads, Replicas
from . import random_values
from .machine import refuse_beyond_machine
from .model_and_program import AllRanks, Key, OneDevice, SingleDevice, backward
from .optimizer_drift import Drift
from .report import TOLERANCES, CheckReport, CheckRow, compare
from .separate_microbatches import forward

Expected = Callable[[Program, Reference, Mapping[Key, Tensor]], OneDevice]
"""Makes the expected side of a check from the program, its reference and the initial values."""

_ROUNDINGS = 64
"""A gradient whose largest magnitude is below this many roundings of the model's largest one is zero up to rounding."""


def checking_threads(program: Program) -> Session:
    """A session with ranks as threads that compares replicas."""
    return RankThreads(program, replicas=Replicas.CHECK)


def check(
    program: Program,
    *,
    ranks: Callable[[Program], Session] = checking_threads,
    side: Callable[[Session, Mapping[Key, Tensor]], AllRanks] = AllRanks,
    expected: Expected = SingleDevice,
    steps: int = 3,
    seed: int = 0,
) -> CheckReport:
    """Check a program against its reference, over `steps` optimizer steps in train mode.

    `ranks` makes the session, `side` its parameters and optimizer, `expected` the side that it must equal.

    Errors: RunError E0340 where the program has no reference, and those of running it (E0330 where replicas differ).
    """
    reference = program.single_device
    if reference is None:
        raise RunError(
            "E0340", "the program has no single-device reference to check with", help="compile the model again"
        )
    random = torch.Generator().manual_seed(seed)
    tolerance = TOLERANCES.get(program.manifest.dtype)
    values = initial_values(program, reference, random)
    single = expected(program, reference, values)
    session = ranks(program)
    try:
        program_side = side(session, values)
        rows = _compare_steps(program, reference, single, program_side, steps, random, tolerance)
    finally:
        session.close()
    return CheckReport(tuple(rows), program.manifest.dtype, steps if program.manifest.mode == "train" else 0, seed)


def _compare_steps(
    program: Program,
    reference: Reference,
    reference_side: OneDevice,
    program_side: AllRanks,
    steps: int,
    random: torch.Generator,
    tolerance: float | None,
) -> list[CheckRow]:
    rows: list[CheckRow] = []
    drift = Drift(tolerance or 0.0)
    names = [output.name or str(output.index) for output in program.results_of_kind("output")]
    for step in range(steps if program.manifest.mode == "train" else 1):
        batch = random_inputs(program, reference, random)
        program_inputs, reference_inputs = _leaves(program, batch), _leaves(program, batch)
        outputs = program_side.forward(program_inputs)
        expected_outputs = forward(program, reference, reference_side, reference_inputs)
        if step == 0:
            pairs = zip(names, expected_outputs, outputs, strict=True)
            rows += [compare("output", name, expected, value, tolerance) for name, expected, value in pairs]
        if program.manifest.mode == "train":
            tangents = _tangents(program, outputs, random)
            backward(outputs, tangents)
            backward(expected_outputs, tangents)
            rounding = _rounding(reference_side.gradients(), program.manifest.dtype)
            if step == 0:
                expected_gradients = reference_side.gradients() | _input_gradients(program, reference_inputs)
                gradients = program_side.gradients() | _input_gradients(program, program_inputs)
                rows += _compare_gradients(expected_gradients, gradients, tolerance, rounding)
            drift.note(reference_side.gradients(), rounding)
            program_side.step()
            reference_side.step()
    if program.manifest.mode == "train":
        rows += [
            drift.compare(name, reference_side.parameters[name], value) for name, value in program_side.whole().items()
        ]
    rows += [
        compare("buffer", name, value, program_side.buffers[name], tolerance)
        for name, value in reference_side.changed.items()
    ]
    return rows


def _leaves(program: Program, inputs: Mapping[int | None, Tensor]) -> dict[int | None, Tensor]:
    """The inputs of one side; those that require a gradient are copies of its own."""
    differentiable = {argument.index for argument in program.of_kind("input") if argument.requires_grad}
    return {
        index: value.clone().requires_grad_() if index in differentiable else value for index, value in inputs.items()
    }


def _input_gradients(program: Program, inputs: Mapping[int | None, Tensor]) -> dict[str, Tensor]:
    pairs = (
        (argument.name, inputs[argument.index].grad) for argument in program.of_kind("input") if argument.requires_grad
    )
    return {name: gradient for name, gradient in pairs if gradient is not None}


def _compare_gradients(
    expected: Mapping[str, Tensor], computed: Mapping[str, Tensor], tolerance: float | None, rounding: float
) -> list[CheckRow]:
    rows = []
    for name in dict.fromkeys([*expected, *computed]):
        example = expected.get(name, computed.get(name))
        assert example is not None, "the name is a key of either"
        zero = torch.zeros_like(example)
        row = compare("gradient", name, expected.get(name, zero), computed.get(name, zero), tolerance, rounding)
        rows.append(row)
    return rows


def _rounding(gradients: Mapping[str, Tensor], dtype: str) -> float:
    largest = max((float(gradient.abs().max()) for gradient in gradients.values() if gradient.numel()), default=0.0)
    return _ROUNDINGS * float(torch.finfo(DTYPES[dtype]).eps) * largest


def _tangents(program: Program, outputs: Sequence[Tensor], random: torch.Generator) -> dict[int, Tensor]:
    """By position among the outputs: 1 for a scalar, else random."""
    indices = {argument.index for argument in program.of_kind("tangent")}
    tangents = {}
    for index, output in enumerate(program.results_of_kind("output")):
        if output.index in indices:
            shape = outputs[index].shape
            tangents[index] = torch.randn(shape, generator=random, dtype=torch.float64) if shape else torch.ones(())
    return tangents


def initial_values(program: Program, reference: Reference | None, random: torch.Generator) -> dict[Key, Tensor]:
    """Random parameters, and buffers and constants as the program came with them (random buffers otherwise).

    Raises RunError E0344 where the machine is too small for the program.
    """
    refuse_beyond_machine(program)
    values: dict[Key, Tensor] = {}
    arguments: list[Input | ReferenceInput] = [*program.inputs, *(reference.inputs if reference else ())]
    for argument in arguments:
        key = (argument.kind, argument.name)
        if key in values or argument.kind in ("input", "random", "tangent"):
            continue
        if argument.kind == "parameter":
            values[key] = random_values.parameter(argument.name, argument.shape, argument.dtype, random)
        elif argument.name in program.weights:
            values[key] = program.weights[argument.name]
        elif argument.kind == "buffer":
            values[key] = random_values.buffer(argument.shape, argument.dtype, random)
        else:
            raise RunError(
                "E0313", f"the program has no value for constant '{argument.name}'", help="compile the model again"
            )
    return values


def random_inputs(program: Program, reference: Reference | None, random: torch.Generator) -> dict[int | None, Tensor]:
    """One random batch, by index of the input."""
    descriptions = program.manifest.arguments.get("inputs", {})
    inputs: dict[int | None, Tensor] = {}
    arguments: list[Input | ReferenceInput] = [*program.of_kind("input"), *(reference.inputs if reference else ())]
    for argument in arguments:
        if argument.kind == "input" and argument.index not in inputs:
            description: Json = descriptions.get(argument.name, {}) if isinstance(descriptions, Mapping) else {}
            options = description if isinstance(description, Mapping) else {}
            inputs[argument.index] = random_values.user_input(argument.shape, argument.dtype, options, random)
    return inputs
