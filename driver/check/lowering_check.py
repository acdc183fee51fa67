"""Check the last step of a compile: the program that a module is lowered to computes what the module computes.

The module runs in the interpreter of modules, the program in the interpreter of programs (`backends/interpreter/`), on
the same random inputs, in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from ...backends.interpreter import ProgramRecords, run_program
from ...backends.program.lower_program import lower_program
from ...ir.collectives import BLOCKING
from ...ir.equivalence.compare import Comparison, compare_results
from ...ir.equivalence.integer_ranges import IntegerRange
from ...ir.equivalence.random_inputs import random_inputs
from ...ir.equivalence.regimes import Regime
from ...ir.interpreter import Floats, run
from ...ir.interpreter.code import Code, decode
from ...ir.interpreter.errors import UNLIKE, InterpreterError
from ...ir.module import Level, Module
from ...ir.pipelined_module import MICROBATCH, pipeline_axis
from ...runtime.program.program import Program
from ...runtime.program.records import Input, Output

Port = TypeVar("Port", Input, Output)

LOWERING = "lower to program"
"""The name of the step in reports."""


def can_be_lowered(module: Module) -> bool:
    """Whether a module is at the end of the passes, and its arguments and results have the records of a program.

    At the end means: of level `comm`, without idioms and reshards, with every collective started and waited for, and
    microbatches in order.
    """
    if module.level is not Level.COMM or (MICROBATCH in dict(module.mesh) and pipeline_axis(module) is None):
        return False
    code = decode(module)
    names = {step.name for body in code.bodies.values() for step in body.steps}
    is_lowered = not names & {*BLOCKING, "comm.reshard"} and not any(name.startswith("nn.") for name in names)
    records = [port.record for port in (*code.arguments, *code.results)]
    return is_lowered and all(record.keys() >= {"kind", "name", "index"} for record in records)


def records_of(module: Module) -> ProgramRecords:
    """Lower a module, and return the records of the program."""
    lowered = lower_program(module)
    return ProgramRecords(
        lowered.mesh, _functional(lowered.inputs), _functional(lowered.outputs), lowered.functions, lowered.locations,
        lowered.pipeline,
    )  # fmt: skip


def records_of_program(program: Program) -> ProgramRecords:
    """The records of a program from a folder."""
    valid = program.validated
    return ProgramRecords(
        valid.manifest.mesh, _functional(valid.inputs), _functional(valid.outputs), valid.functions, valid.locations,
        valid.pipeline,
    )  # fmt: skip


def _functional(records: Sequence[Port]) -> tuple[Port, ...]:
    """The records with states as buffers: to their values, memory makes no difference."""
    return tuple(replace(record, kind="buffer") if record.kind == "state" else record for record in records)


def compare_with_module(
    module: Module,
    program: ProgramRecords,
    seed: int,
    ranges: Mapping[str, IntegerRange],
    tolerance: float,
    max_bytes: int | None,
    regime: Regime = Regime.NORMAL,
) -> Comparison:
    """Run the module and the program on the same random inputs, and compare their results.

    Errors: E0660 where they take or give different tensors, E0661 for an unknown range, and those of either run.
    """
    code = decode(module)
    order = program_result_order(code, program)
    inputs = random_inputs(module, seed, ranges, regime=regime)
    expected = run(module, inputs, floats=Floats.FLOAT64, max_bytes=max_bytes)
    found = run_program(program, program_inputs(code, inputs))
    return compare_results(module, inputs, expected, [found[index] for index in order], tolerance, max_bytes=max_bytes)


def program_inputs(code: Code, inputs: Sequence[Tensor]) -> dict[tuple[str, str], Tensor]:
    """The inputs of a program, given those of a module in order."""
    keys = [(str(port.record.get("kind", "")), str(port.record.get("name", ""))) for port in code.arguments]
    return dict(zip(keys, inputs, strict=True))


def program_result_order(code: Code, program: ProgramRecords) -> list[int]:
    """By result of the module, the index of the program's. E0660 where they differ."""
    wanted = [
        (str(port.record.get("kind")), str(port.record.get("name") or ""), int(port.record.get("index", -1)))
        for port in code.results
    ]
    returned = [(each.kind, each.name, -1 if each.index is None else each.index) for each in program.outputs]
    if sorted(wanted) != sorted(returned):
        missing = next((key for key in wanted if key not in returned), None)
        extra = next((key for key in returned if key not in wanted), None)
        raise InterpreterError(
            UNLIKE,
            f"the program does not return what its module returns: "
            f"{_text(missing)} is missing, {_text(extra)} is one too many",
        )
    return [returned.index(key) for key in wanted]


def _text(key: tuple[str, str, int] | None) -> str:
    return "nothing" if key is None else f"{key[0]} {key[1] or key[2]}"
