"""The check of a program against the model on one device.

Both sides start from the same seeded random values (`random_values.py`). Compared are outputs and gradients of the
first parameters, summed over two batches, and of halved ones; then both take the same AdamW steps, each step on a batch
of its own, and parameters and buffers after the last are compared. Every output that is differentiated has a random
tangent. One forward and backward more is compared in each of the other regimes of values (`other_regimes.py`).

In float32 and float64, errors are relative to the largest magnitude of the reference tensor. A tensor that differs is
nothing but rounding only if the reference's own changes as much when its inputs change in their last places. In shorter
dtypes the error against a reference in float64 may be a few times that of eager mode in the program's dtype. Where the
program says in which dtype gradients are reduced, each of their reductions must have it (`reduction_dtypes.py`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...diagnostics import StrettoError
from ..errors import CollectiveError, RowCountError, RowsAboveBound, RunError
from ..program.arguments import Json
from ..program.program import Program
from ..program.records import Input
from ..program.reference_records import Reference, ReferenceInput
from ..rank.frees_watch import watch_frees
from ..session import Session
from ..threads.session import RankThreads, Replicas
from . import random_values
from .generator_draws import wrong_draws
from .judging import WithinEagerError, WithinTolerance
from .loaded_side import LoadedSide
from .machine import refuse_beyond_machine
from .model_and_program import AllRanks, Key, OneDevice, SingleDevice
from .other_regimes import Sides
from .recording import Recording, StepInputs, record, record_once
from .reduction_dtypes import wrong_reductions
from .regimes import Regime
from .report import MEMORY, TOLERANCES, CheckReport, CheckRow, Verdict, raised_row
from .rounding import changes, in_float64, perturbation, perturbed, raise_float
from .separate_microbatches import forward
from .stated import Ranges, as_stated, contradictions, left_out, without_a_row

_FAULTS = ("E0306", "E0320", "E0330", "E0335", "E0338")
"""Of a call that eager mode takes: the program is malformed, an instruction fails, replicas differ, an input was
written to, or counts of rows do not fit together."""
Expected = Callable[[Program, Reference, Mapping[Key, Tensor]], OneDevice]
"""Makes the expected side of a check from the program, its reference and the initial values."""


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
    ranges: Ranges | None = None,
) -> CheckReport:
    """Check a program against its reference, over `steps` optimizer steps in train mode.

    `ranks` makes the session, `side` its parameters and optimizer, `expected` the side that it must equal. By default a
    program for inference is called as `load_program` has it. `ranges` are the values of integer inputs of which the
    reference says none. What is compared is what the reference states: who is trained, the outputs, the dtype.

    Errors: RunError E0340 where the program has no reference, E0349 where the range of an integer input is unknown, and
    those of running it that are none of the program (E0338 where more rows come than a plan's bound has room for).
    """
    reference = program.single_device
    if reference is None:
        raise RunError(
            "E0340", "the program has no single-device reference to check with", help="compile the model again"
        )
    random = torch.Generator().manual_seed(seed)
    stated = as_stated(program, reference, ranges or {})
    dtype, trains = stated.manifest.dtype, stated.manifest.mode == "train"
    if missing := left_out(program, reference):
        return CheckReport(tuple(missing), dtype, 0, seed)
    values = initial_values(program, reference, random)
    step_inputs = StepInputs(
        lambda: random_inputs(stated, reference, random),
        lambda outputs: _tangents(stated, outputs, random),
        steps,
    )
    one_device = _OneDevice(stated, reference, expected)
    side = LoadedSide if side is AllRanks and ranks is checking_threads and not trains else side
    session = ranks(program)

    def on_ranks(values: Mapping[Key, Tensor], step_inputs: StepInputs) -> Recording:
        with _of_the_program():
            model = side(session, values)
            return record_once(stated, model, model.forward, step_inputs)

    try:
        with _of_the_program(), watch_frees() as kept:
            program_side = side(session, values)
            recording = record(stated, program_side, program_side.forward, step_inputs)
        others = Sides(stated, on_ranks, one_device.once, ranks is checking_threads).compare(values, step_inputs)
    except _Raised as raised:
        row = raised_row("the program", raised.error)
        return CheckReport((*contradictions(program, reference), row), dtype, 0, seed)
    finally:
        session.close()
    rows = [
        *contradictions(program, reference),
        *wrong_reductions(program),
        *wrong_draws(program),
        *(CheckRow(MEMORY, "the executor", math.inf, Verdict.DIFFERS, line) for line in kept),
        *one_device.judge(recording, values, step_inputs),
    ]
    rows += [*without_a_row(rows, reference), *others.rows]
    regimes = (Regime.NORMAL, *others.equal)
    return CheckReport(tuple(rows), dtype, steps if trains else 0, seed, tuple(map(str, regimes)))


def is_of_the_program(error: StrettoError) -> bool:
    """Whether an error of a right call is a fault of the program or its runtime, whatever it advises the caller."""
    is_known = error.code in _FAULTS or isinstance(error, RowCountError | CollectiveError)
    return is_known and not isinstance(error, RowsAboveBound)


class _Raised(Exception):
    """The program under check raised an exception that is no user error."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@contextmanager
def _of_the_program() -> Iterator[None]:
    """Inside runs the program alone, so that an exception of Python is a fault of it: raises _Raised.

    Memory that nobody has written to holds NaN, so that a result of it shows in each run.
    """
    enabled, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        except StrettoError as error:
            if is_of_the_program(error):
                raise _Raised(error) from error
            raise
        except Exception as error:  # any: what is under check may be wrong in any way
            raise _Raised(error) from error
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=warns)


@dataclass(frozen=True)
class _OneDevice:
    """The runs of the model on one device that a program is judged by."""

    program: Program
    reference: Reference
    expected: Expected

    def judge(self, program: Recording, values: Mapping[Key, Tensor], step_inputs: StepInputs) -> list[CheckRow]:
        """The rows of the program's recording."""
        model = self.expected(self.program, self.reference, values)
        own = self._recorded(self.program, model, step_inputs)
        return [*model.findings(), *self._rows(program, own, values, step_inputs)]

    def once(self, values: Mapping[Key, Tensor], step_inputs: StepInputs) -> Recording:
        """One forward and backward."""
        model = self.expected(self.program, self.reference, values)
        return record_once(
            self.program, model, lambda inputs: forward(self.program, self.reference, model, inputs), step_inputs
        )

    def _rows(
        self, program: Recording, own: Recording, values: Mapping[Key, Tensor], step_inputs: StepInputs
    ) -> list[CheckRow]:
        dtype, steps = self.program.manifest.dtype, step_inputs.steps
        if dtype not in TOLERANCES:
            short = WithinEagerError(self._exact(values, step_inputs), own, dtype, steps)
            rows = short.rows(program)
            if all(row.verdict is not Verdict.DIFFERS for row in rows):
                return rows
            moved = perturbation(self.program)
            values, step_inputs = perturbed(values, moved), step_inputs.altered(moved)
            elsewhere = changes(self._exact(values, step_inputs), self._record(self.program, values, step_inputs))
            return replace(short, elsewhere=elsewhere).rows(program)
        rows = WithinTolerance(own, dtype, TOLERANCES[dtype], steps, {}).rows(program)
        if all(row.verdict is not Verdict.DIFFERS for row in rows):
            return rows
        moved = perturbation(self.program)
        changed = changes(own, self._record(self.program, perturbed(values, moved), step_inputs.altered(moved)))
        return WithinTolerance(own, dtype, TOLERANCES[dtype], steps, changed).rows(program)

    def _exact(self, values: Mapping[Key, Tensor], step_inputs: StepInputs) -> Recording:
        """What the model computes in float64."""
        raised, raised_values = in_float64(self.program, values)
        return self._record(raised, raised_values, step_inputs.altered(raise_float))

    def _record(self, program: Program, values: Mapping[Key, Tensor], step_inputs: StepInputs) -> Recording:
        return self._recorded(program, self.expected(program, self.reference, values), step_inputs)

    def _recorded(self, program: Program, model: OneDevice, step_inputs: StepInputs) -> Recording:
        """What the model computes. Raises RunError E0345 where torch cannot run or differentiate it."""
        try:
            return record(program, model, lambda inputs: forward(program, self.reference, model, inputs), step_inputs)
        except RuntimeError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RunError(
                "E0345",
                f"the model fails on one device, so there is nothing to compare with: {reason}",
                expected="a forward and a backward that torch can run",
                help="call the model, and backward() of its loss, without Stretto",
            ) from error


def _tangents(program: Program, outputs: Sequence[Tensor], random: torch.Generator) -> dict[int, Tensor]:
    """By position among the outputs, a random tangent each, never 1: a backward that loses it gives other gradients.

    A pipeline with a backward that is not linear takes no other than 1.
    """
    indices = {argument.index for argument in program.of_kind("tangent")}
    is_fixed = program.pipeline is not None and bool(program.pipeline.nonlinear)
    tangents = {}
    for index, output in enumerate(program.results_of_kind("output")):
        if output.index in indices:
            drawn = random_values.tangent(outputs[index].shape, random)
            tangents[index] = torch.ones_like(drawn) if is_fixed else drawn
    return tangents


def initial_values(program: Program, reference: Reference | None, random: torch.Generator) -> dict[Key, Tensor]:
    """Random parameters, and buffers and constants as the program came with them (random buffers otherwise).

    Raises RunError E0344 where the machine is too small for the program.
    """
    refuse_beyond_machine(program)
    values: dict[Key, Tensor] = {}
    arguments: list[Input | ReferenceInput] = [*program.inputs, *(reference.inputs if reference else ())]
    for argument in arguments:
        key = ("buffer" if argument.kind == "state" else argument.kind, argument.name)
        if key in values or argument.kind in ("input", "random", "tangent"):
            continue
        if argument.kind == "parameter":
            values[key] = random_values.parameter(argument.name, argument.shape, argument.dtype, random)
        elif argument.name in program.weights:
            values[key] = program.weights[argument.name]
        elif argument.kind in ("buffer", "state"):
            values[key] = random_values.buffer(argument.shape, argument.dtype, random)
        else:
            raise RunError(
                "E0313", f"the program has no value for constant '{argument.name}'", help="compile the model again"
            )
    return values


def random_inputs(
    program: Program,
    reference: Reference | None,
    random: torch.Generator,
    unknown: random_values.Unknown = random_values.Unknown.REFUSE,
) -> dict[int | None, Tensor]:
    """One random batch, by index of the input. E0349 for an integer input of unknown range that may not be guessed."""
    descriptions = program.manifest.arguments.get("inputs", {})
    inputs: dict[int | None, Tensor] = {}
    arguments: list[Input | ReferenceInput] = [*program.of_kind("input"), *(reference.inputs if reference else ())]
    for argument in arguments:
        if argument.kind == "input" and argument.index not in inputs:
            description: Json = descriptions.get(argument.name, {}) if isinstance(descriptions, Mapping) else {}
            options = description if isinstance(description, Mapping) else {}
            if unknown is random_values.Unknown.REFUSE:
                random_values.require_range(argument.name, argument.dtype, options)
            inputs[argument.index] = random_values.user_input(argument.shape, argument.dtype, options, random)
    return inputs
