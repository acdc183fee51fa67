"""Does a program compute what the model computes on one device?

Both start from the same seeded random values (`random_values.py`) and take the same steps of AdamW, each on its own
batch. Compared are the outputs and every parameter's gradient of the first step, then parameters and buffers after the
last. Errors are relative to the reference tensor's largest magnitude.

AdamW divides a gradient by its own magnitude, so that where a gradient is near zero its rounding decides the step. The
error accepted of gradients is therefore carried through the update: an element may differ by
lr * steps * min(2, accepted gradient error / |gradient|) more, and a row that needs this says so.
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
from .model_and_program import AllRanks, Key, OneDevice, SingleDevice, backward
from .optimizer_drift import Drift
from .report import TOLERANCES, CheckReport, CheckRow, compare
from .separate_microbatches import forward

Expected = Callable[[Program, Reference, Mapping[Key, Tensor]], OneDevice]
"""Makes the single-device side of a check from the program, its reference, and the initial values."""

_ROUNDINGS = 64
"""A gradient whose largest magnitude is below this many roundings of the model's largest one is zero up to rounding."""


def checking_threads(program: Program) -> Session:
    """Ranks as threads, that also compare replicas with each other."""
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
    """Run the program and its reference; `steps` steps of the optimizer in train mode.

    `side` holds parameters and optimizer for the session that `ranks` makes, `expected` is what it must equal.

    Errors: RunError E0340 when the program carries no reference, and all that running it can raise (E0330 where
    replicas differ).
    """
    reference = program.single_device
    if reference is None:
        raise RunError("E0340", "the program carries no single-device reference to check with", help="compile it again")
    random = torch.Generator().manual_seed(seed)
    tolerance = TOLERANCES.get(program.manifest.dtype)
    values = initial_values(program, reference, random)
    single = expected(program, reference, values)
    session = ranks(program)
    try:
        found = side(session, values)
        rows = _compare_steps(program, reference, single, found, steps, random, tolerance)
    finally:
        session.close()
    return CheckReport(tuple(rows), program.manifest.dtype, steps if program.manifest.mode == "train" else 0, seed)


def _compare_steps(
    program: Program,
    reference: Reference,
    expected: OneDevice,
    found: AllRanks,
    steps: int,
    random: torch.Generator,
    tolerance: float | None,
) -> list[CheckRow]:
    rows: list[CheckRow] = []
    drift = Drift(tolerance or 0.0)
    names = [each.name or str(each.index) for each in program.results_of_kind("output")]
    for step in range(steps if program.manifest.mode == "train" else 1):
        batch = random_inputs(program, reference, random)
        own_inputs, their_inputs = _leaves(program, batch), _leaves(program, batch)
        ours, theirs = found.forward(own_inputs), forward(program, reference, expected, their_inputs)
        if step == 0:
            pairs = zip(names, theirs, ours, strict=True)
            rows += [compare("output", name, right, left, tolerance) for name, right, left in pairs]
        if program.manifest.mode == "train":
            tangents = _tangents(program, ours, random)
            backward(ours, tangents)
            backward(theirs, tangents)
            rounding = _rounding(expected.gradients(), program.manifest.dtype)
            if step == 0:
                left = expected.gradients() | _input_gradients(program, their_inputs)
                right = found.gradients() | _input_gradients(program, own_inputs)
                rows += _compare_gradients(left, right, tolerance, rounding)
            drift.note(expected.gradients(), rounding)
            found.step()
            expected.step()
    if program.manifest.mode == "train":
        rows += [drift.compare(name, expected.parameters[name], value) for name, value in found.whole().items()]
    rows += [compare("buffer", name, value, found.buffers[name], tolerance) for name, value in expected.changed.items()]
    return rows


def _leaves(program: Program, inputs: Mapping[int | None, Tensor]) -> dict[int | None, Tensor]:
    """The inputs of a side, those that want a gradient as leaves of its own."""
    wanted = {each.index for each in program.of_kind("input") if each.requires_grad}
    return {at: value.clone().requires_grad_() if at in wanted else value for at, value in inputs.items()}


def _input_gradients(program: Program, inputs: Mapping[int | None, Tensor]) -> dict[str, Tensor]:
    takes = ((each.name, inputs[each.index].grad) for each in program.of_kind("input") if each.requires_grad)
    return {name: gradient for name, gradient in takes if gradient is not None}


def _compare_gradients(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], tolerance: float | None, rounding: float
) -> list[CheckRow]:
    rows = []
    for name in dict.fromkeys([*expected, *found]):
        one = expected.get(name, found.get(name))
        assert one is not None, "the name is a key of either"
        zero = torch.zeros_like(one)
        row = compare("gradient", name, expected.get(name, zero), found.get(name, zero), tolerance, rounding)
        rows.append(row)
    return rows


def _rounding(gradients: Mapping[str, Tensor], dtype: str) -> float:
    largest = max((float(each.abs().max()) for each in gradients.values() if each.numel()), default=0.0)
    return _ROUNDINGS * float(torch.finfo(DTYPES[dtype]).eps) * largest


def _tangents(program: Program, outputs: Sequence[Tensor], random: torch.Generator) -> dict[int, Tensor]:
    """By position among the outputs: 1 for a scalar, else random."""
    indices = {each.index for each in program.of_kind("tangent")}
    tangents = {}
    for at, each in enumerate(program.results_of_kind("output")):
        if each.index in indices:
            shape = outputs[at].shape
            tangents[at] = torch.randn(shape, generator=random, dtype=torch.float64) if shape else torch.ones(())
    return tangents


def initial_values(program: Program, reference: Reference | None, random: torch.Generator) -> dict[Key, Tensor]:
    """Random parameters, and buffers and constants as the program came with them (random buffers otherwise)."""
    values: dict[Key, Tensor] = {}
    takes: list[Input | ReferenceInput] = [*program.inputs, *(reference.inputs if reference else ())]
    for each in takes:
        key = (each.kind, each.name)
        if key in values or each.kind in ("input", "random", "tangent"):
            continue
        if each.kind == "parameter":
            values[key] = random_values.parameter(each.name, each.shape, each.dtype, random)
        elif each.name in program.weights:
            values[key] = program.weights[each.name]
        elif each.kind == "buffer":
            values[key] = random_values.buffer(each.shape, each.dtype, random)
        else:
            raise RunError("E0313", f"the program has no value for constant '{each.name}'", help="compile it again")
    return values


def random_inputs(program: Program, reference: Reference | None, random: torch.Generator) -> dict[int | None, Tensor]:
    """One batch, by index."""
    abouts = program.manifest.arguments.get("inputs", {})
    inputs: dict[int | None, Tensor] = {}
    takes: list[Input | ReferenceInput] = [*program.of_kind("input"), *(reference.inputs if reference else ())]
    for each in takes:
        if each.kind == "input" and each.index not in inputs:
            about: Json = abouts.get(each.name, {}) if isinstance(abouts, Mapping) else {}
            known = about if isinstance(about, Mapping) else {}
            inputs[each.index] = random_values.user_input(each.shape, each.dtype, known, random)
    return inputs
