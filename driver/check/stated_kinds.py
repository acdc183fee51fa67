"""Whether functions compute what their kinds say: bodies against the formulas of the idioms, in float64.

What a program computes, its bodies say. A runtime may take a kernel for the kind, so that what the kind says matters,
too. A kind that is no idiom has no formula: it means what its body computes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...backends.interpreter import ProgramRecords, run_program
from ...ir.dialects.schemas import Kind as ArgumentKind
from ...ir.dialects.schemas import definitions
from ...ir.interpreter.nn import evaluate
from ...runtime.implementations.binding import kind_functions
from ...runtime.implementations.registry import KindFunction
from ...runtime.program.arguments import DTYPES
from ...runtime.program.program import Program
from ...runtime.program.records import Input, Output, SlotType

_TOLERANCE = 1e-9
"""Of the largest element; a sum in another order differs by 1e-13."""
_SEED = 0


def wrong_kind(program: Program) -> str:
    """A line on the first function that does not compute what its kind says; empty if there is none."""
    generator = torch.Generator().manual_seed(_SEED)
    for function in kind_functions(program).values():
        if f"nn.{function.kind.name}" not in definitions():
            continue
        problem = _problem(function, generator)
        if problem:
            return f'function "{function.name}" is said to be {function.kind.name}, but {problem}'
    return ""


def _problem(function: KindFunction, generator: torch.Generator) -> str:
    kind, definition = function.kind, definitions()[f"nn.{function.kind.name}"]
    tensors = [_random(each, generator) for each in function.operands]
    given = {**dict(zip(kind.operands, tensors, strict=True)), **kind.attributes}
    names = [argument.name for argument in definition.arguments]
    unknown = next((name for name in given if name not in names), None)
    if unknown is not None:
        return f'has no "{unknown}"'
    missing = next(
        (a.name for a in definition.arguments if a.kind is ArgumentKind.TENSOR and a.name not in given), None
    )
    if missing is not None:
        return f'is not given its "{missing}"'
    try:
        expected = evaluate(definition.name, [given.get(name) for name in names])
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        return f"its formula fails: {str(error).splitlines()[0]}"
    formulas = {n: each for n, each in zip(definition.result_names, expected, strict=True) if each is not None}
    if kind.results != tuple(formulas):
        return f"gives {', '.join(formulas)}, not {', '.join(kind.results)}"
    for name, found, formula in zip(kind.results, _of_body(function, tensors), formulas.values(), strict=True):
        if found.shape != formula.shape or not _is_close(found, formula):
            return f'its body gives another "{name}"'
    return ""


def _is_close(found: Tensor, formula: Tensor) -> bool:
    largest = float(formula.nan_to_num(posinf=0, neginf=0).abs().max()) if formula.numel() else 0.0
    return torch.allclose(found.double(), formula.double(), rtol=0, atol=_TOLERANCE * largest, equal_nan=True)


def _of_body(function: KindFunction, tensors: list[Tensor]) -> list[Tensor]:
    """The results of a body on one rank."""
    body = function.body
    inputs = tuple(
        Input(name, "input", tuple(tensor.shape), each.dtype, slot, index=index)
        for index, (name, tensor, each, slot) in enumerate(
            zip(function.kind.operands, tensors, function.operands, body.arguments, strict=True)
        )
    )
    outputs = tuple(
        Output(name, "output", each.shape, each.dtype, slot, index=index)
        for index, (name, each, slot) in enumerate(
            zip(function.kind.results, function.results, body.results, strict=True)
        )
    )
    records = ProgramRecords((("rank", 1),), inputs, outputs, {"main": body})
    return run_program(records, {("input", each.name): tensor for each, tensor in zip(inputs, tensors, strict=True)})


def _random(type_: SlotType, generator: torch.Generator) -> Tensor:
    """Floats in float64 as the interpreters have them; small whole numbers, such as offsets."""
    dtype = DTYPES[type_.dtype]
    if dtype.is_floating_point:
        return torch.randn(type_.shape, dtype=torch.float64, generator=generator)
    return torch.randint(0, 3, type_.shape, generator=generator).to(dtype)
