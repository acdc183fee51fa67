"""All passes together in other regimes of inputs, and which decisions took only one side in all of them.

Each pass is compared in the normal regime. What the passes make of the module is then compared with it in the others:
large, tiny, negative, tied and saturating inputs, and others. A module whose own results are not finite there says
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...backends.interpreter import ProgramRecords, run_program
from ...diagnostics import StrettoError
from ...ir.equivalence.compare import Comparison, ResultComparison, Verdict, compare_results, pairing
from ...ir.equivalence.integer_ranges import IntegerRange
from ...ir.equivalence.one_sided import OneSided, Sides
from ...ir.equivalence.random_inputs import random_inputs
from ...ir.equivalence.regimes import FINITE, OF_INPUTS, OTHERS, Regime
from ...ir.interpreter import Floats, RowsAboveBoundError, run
from ...ir.interpreter.code import Code, decode
from ...ir.module import Level, Module
from .lowering_check import program_inputs, program_result_order

REGIMES = "in other regimes"
"""The name of the row in reports."""


@dataclass(frozen=True)
class RegimeReport:
    """The comparison in the other regimes."""

    differs: Regime | None
    """The first in which a result differs; None where none does."""
    comparison: Comparison
    """Of that regime; else the best verdict of each result over all regimes."""
    failed: str = ""
    """The error of a run, where only one side failed."""
    unjudged: tuple[Regime, ...] = ()
    """Regimes in which the module itself cannot be run, or that change none of its inputs."""
    one_sided: tuple[OneSided, ...] = ()


@dataclass(frozen=True)
class Ends:
    """What is compared: the module before all passes, the one after them, and its program where it is lowered."""

    before: Module
    after: Module
    program: ProgramRecords | None


def check_regimes(
    ends: Ends, seed: int, ranges: Mapping[str, IntegerRange], tolerance: float, max_bytes: int | None
) -> RegimeReport:
    """Compare in all other regimes; stops at the first that differs. Errors: those of `run` in the normal regime."""
    code = decode(ends.before)
    sides = Sides(code) if code.level is Level.ATEN else None
    best: dict[str, ResultComparison] = {}
    unjudged = []
    for regime in (Regime.NORMAL, *OTHERS):
        inputs = random_inputs(ends.before, seed, ranges, regime=regime)
        if regime in OF_INPUTS and _same_inputs(code, inputs, random_inputs(ends.before, seed, ranges)):
            unjudged.append(regime)
            continue
        try:
            expected = run(ends.before, inputs, floats=Floats.FLOAT64, max_bytes=max_bytes, observer=sides)
        except StrettoError:
            unjudged.append(regime)
            continue
        if regime is Regime.NORMAL:  # compared pass by pass already
            continue
        try:
            found = _results_after(ends, inputs, max_bytes)
        except RowsAboveBoundError:
            unjudged.append(regime)
            continue
        except StrettoError as error:
            return RegimeReport(regime, Comparison(()), error.render())
        comparison = compare_results(ends.before, inputs, expected, found, tolerance, max_bytes=max_bytes)
        judged = [_unless_finite(r, value) for r, value in zip(comparison.results, expected, strict=True)]
        if regime in FINITE:
            judged = [_if_finite(result, value) for result, value in zip(judged, found, strict=True)]
        if any(result.verdict is Verdict.DIFFERENT for result in judged):
            return RegimeReport(regime, Comparison(tuple(judged)))
        for result in judged:
            known = best.get(result.name)
            if known is None or known.verdict is Verdict.NOT_CHECKED:
                best[result.name] = result
    one_sided = () if sides is None else tuple(sides.one_sided())
    return RegimeReport(None, Comparison(tuple(best.values())), "", tuple(unjudged), one_sided)


def _same_inputs(code: Code, found: list[Tensor], normal: list[Tensor]) -> bool:
    """Whether a regime leaves all inputs as they are, whatever it does to parameters."""
    kinds = [port.record.get("kind") for port in code.arguments]
    return all(torch.equal(a, b) for kind, a, b in zip(kinds, found, normal, strict=True) if kind == "input")


def _results_after(ends: Ends, inputs: list[Tensor], max_bytes: int | None) -> list[Tensor]:
    """The results after all passes, in the order of those before."""
    code = decode(ends.before)
    if ends.program is not None:
        found = run_program(ends.program, program_inputs(code, inputs))
        return [found[index] for index in program_result_order(code, ends.program)]
    arguments, results = pairing([code, decode(ends.after)])
    found = run(ends.after, [inputs[index] for index in arguments], floats=Floats.FLOAT64, max_bytes=max_bytes)
    return [found[index] for index in results]


def _unless_finite(result: ResultComparison, expected: Tensor) -> ResultComparison:
    """A result that overflows before the passes may well be finite after them: it is not checked."""
    if expected.dtype.is_floating_point and not bool(expected.isfinite().all()):
        return replace(result, verdict=Verdict.NOT_CHECKED)
    return result


def _if_finite(result: ResultComparison, found: Tensor) -> ResultComparison:
    """A finite result that differs is not checked."""
    is_finite = not found.dtype.is_floating_point or bool(found.isfinite().all())
    is_rounding = is_finite and result.verdict is Verdict.DIFFERENT
    return replace(result, verdict=Verdict.NOT_CHECKED) if is_rounding else result
