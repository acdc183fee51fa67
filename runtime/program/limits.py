"""Limits of a program: a folder may come from anyone, and what it states must not exhaust memory or time.

They are far above what a compile gives. Files and expressions of sizes are limited in `reading/`, and
what a proof may walk in `prover/analysis.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from math import prod

from .arguments import DTYPES
from .mesh import RankMesh
from .records import Function, Input, Instruction, Output, Pipeline
from .validate_calls import require

MOST_RANKS = 1 << 17
MOST_AXES = 16
MOST_LEVELS = 64
"""How deep calls may be nested. Compiled programs have an entry, segments, layers and what those call."""
MOST_SLOTS = 1 << 22
MOST_BYTES = 1 << 60
"""Of one tensor, on all ranks together: sizes of tensors and of their sums stay within 64 bits."""
LANE_NAME = re.compile(r"[a-z][a-z0-9_.]{0,30}")
MOST_LANES = 16
MOST_PORTS = 10_000_000
"""Inputs and outputs of all stages of a pipeline together."""


def check_limits(
    mesh: RankMesh,
    inputs: Sequence[Input],
    outputs: Sequence[Output],
    functions: Mapping[str, Function],
    pipeline: Pipeline | None,
) -> None:
    """Raise Malformed where a program is over a limit, or calls of its functions form a cycle.

    Nothing but the types of the fields is known of it yet.
    """
    require(len(mesh.axes) <= MOST_AXES, f"manifest.json.mesh: expected at most {MOST_AXES} axes")
    require(mesh.ranks <= MOST_RANKS, f"manifest.json.mesh: {_number(mesh.ranks)} ranks, expected at most {MOST_RANKS}")
    for name, function in functions.items():
        path = f"program.json.functions.{name}.slots"
        require(function.slots <= MOST_SLOTS, f"{path}: expected at most {MOST_SLOTS}, found {_number(function.slots)}")
    tensors: tuple[Input | Output, ...] = (*inputs, *outputs)
    for tensor in tensors:
        bytes_each = DTYPES[tensor.dtype].itemsize if tensor.dtype in DTYPES else 1
        size = prod(max(extent, 1) for extent in tensor.shape) * bytes_each
        require(size <= MOST_BYTES, f"program.json: {tensor.kind} '{tensor.name}' has more than 2^60 bytes")
    ports = (len(inputs) + len(outputs)) * (1 if pipeline is None else len(pipeline.entries))
    require(
        ports <= MOST_PORTS, f"program.json: {ports} inputs and outputs of all stages, expected at most {MOST_PORTS}"
    )
    _check_calls(functions)


def _check_calls(functions: Mapping[str, Function]) -> None:
    """Raise Malformed where a function calls itself, directly or not, or calls are nested too deep."""
    callees = {
        name: sorted({callee for instruction in function.code if (callee := _callee(instruction)) in functions})
        for name, function in functions.items()
    }
    try:
        callees_first = list(TopologicalSorter(callees).static_order())
    except CycleError as error:
        require(False, f"program.json.functions: '{error.args[1][0]}' calls itself")
    levels: dict[str, int] = {}
    for name in callees_first:
        levels[name] = 1 + max((levels[callee] for callee in callees[name]), default=0)
        deep = levels[name] > MOST_LEVELS
        require(not deep, f"program.json.functions: calls of '{name}' are nested more than {MOST_LEVELS} levels deep")


def _callee(instruction: Instruction) -> str:
    """The name of the function that an instruction calls, if it is a call at all."""
    return str(instruction.args[0]) if instruction.op == "call" and instruction.args else ""


def _number(number: int) -> str:
    return str(number) if number < 10**20 else "more than 10^20"
