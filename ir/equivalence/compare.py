"""Compare the results of two modules, both run in float64 on the same random inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import isfinite

import torch
from torch import Tensor

from ..interpreter.code import Code, Port, decode
from ..interpreter.errors import UNLIKE, InterpreterError
from ..interpreter.memory import check
from ..interpreter.padding import Padding
from ..interpreter.precision import Floats
from ..interpreter.ranks import result_name
from ..interpreter.running import run
from ..module import Module
from .integer_ranges import IntegerRange
from .random_inputs import inputs_of, ranges_of
from .regimes import Regime
from .rounding import is_rounding, rounding


class Verdict(StrEnum):
    """The verdict on one result."""

    EQUAL = "equal"
    DIFFERENT = "different"
    NOT_CHECKED = "not checked"
    """All zero, with a NaN, or only rounding error, before and after: a wrong module could return the same."""


@dataclass(frozen=True)
class ResultComparison:
    """One result, before and after."""

    name: str
    error: float
    """Largest absolute difference / largest absolute value before; inf if one side is not finite."""
    verdict: Verdict

    def __str__(self) -> str:
        return f"{self.name}: {self.verdict}" + (
            f" ({self.error:.3g})" if self.verdict is not Verdict.NOT_CHECKED else ""
        )


@dataclass(frozen=True)
class Comparison:
    """All results, in order."""

    results: tuple[ResultComparison, ...]

    @property
    def is_equal(self) -> bool:
        """Whether no result differs, and at least one was checked."""
        verdicts = {r.verdict for r in self.results}
        return Verdict.DIFFERENT not in verdicts and Verdict.EQUAL in verdicts

    @property
    def error(self) -> float:
        """The largest error of the checked results."""
        return max((r.error for r in self.results if r.verdict is not Verdict.NOT_CHECKED), default=0.0)

    def of(self, verdict: Verdict) -> tuple[ResultComparison, ...]:
        """The results with a verdict."""
        return tuple(r for r in self.results if r.verdict is verdict)


def compare(
    before: Module,
    after: Module,
    seed: int = 0,
    *,
    ranges: Mapping[str, IntegerRange] | None = None,
    values: Mapping[str, Tensor] | None = None,
    tolerance: float = 1e-9,
    padding: Padding = Padding.NAN,
    max_bytes: int | None = None,
    regime: Regime = Regime.NORMAL,
) -> Comparison:
    """Run two modules, of any levels, on the same inputs; `tolerance` bounds the error of an equal result.

    Inputs are paired by name, results by kind, name and index, and unnamed ones by position. Integer inputs get random
    values of the range that the modules imply (rows of an embedding, classes and ignored label of a loss) or that
    `ranges` gives by name; `values` fixes inputs by name.
    Errors: E0660 for different arguments or results, E0661 for an unknown range, and those of `run`.
    """
    codes = [decode(before), decode(after)]
    argument_order, result_order = pairing(codes)
    for code in codes:  # the inputs may be too large themselves
        check(code, Floats.FLOAT64, max_bytes)
    inputs = inputs_of(codes[0], seed, ranges_of(*codes) | dict(ranges or {}), values or {}, regime)
    before_results = run(before, inputs, floats=Floats.FLOAT64, padding=padding, max_bytes=max_bytes)
    after_inputs = [inputs[index] for index in argument_order]
    after_results = run(after, after_inputs, floats=Floats.FLOAT64, padding=padding, max_bytes=max_bytes)
    ordered = [after_results[index] for index in result_order]
    return compare_results(before, inputs, before_results, ordered, tolerance, padding, max_bytes)


def compare_results(
    before: Module,
    inputs: Sequence[Tensor],
    before_results: Sequence[Tensor],
    after_results: Sequence[Tensor],
    tolerance: float = 1e-9,
    padding: Padding = Padding.NAN,
    max_bytes: int | None = None,
) -> Comparison:
    """Compare the results of `before` on `inputs` with results in the same order, of whatever computed them.

    `before_results` are those of the interpreter: rounding is estimated by how much they change when inputs do.
    """
    names = [result_name(port.record, i) for i, port in enumerate(decode(before).results)]
    return judge_results(
        names,
        before_results,
        after_results,
        lambda: rounding(before, inputs, before_results, padding, max_bytes),
        tolerance,
    )


def judge_results(
    names: Sequence[str],
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    rounding_errors: Callable[[], Sequence[float]],
    tolerance: float = 1e-9,
) -> Comparison:
    """Compare results in the same order; `rounding_errors` gives the effect of rounding on each result before."""
    comparisons = [compare_tensors(n, a, b, tolerance) for n, a, b in zip(names, before, after, strict=True)]
    if any(r.verdict is Verdict.DIFFERENT and isfinite(r.error) for r in comparisons):
        comparisons = [
            replace(r, verdict=Verdict.NOT_CHECKED)
            if r.verdict is Verdict.DIFFERENT and is_rounding(a, b, perturbation, tolerance)
            else r
            for r, a, b, perturbation in zip(comparisons, before, after, rounding_errors(), strict=True)
        ]
    return Comparison(tuple(comparisons))


def compare_tensors(name: str, before: Tensor, after: Tensor, tolerance: float) -> ResultComparison:
    """Compare one result. `tolerance` bounds the relative error; integers and booleans are compared as numbers."""
    error = relative_error(before, after)
    is_trivial = not before.any() or bool(before.isnan().any())
    if is_trivial and error <= tolerance:
        return ResultComparison(name, error, Verdict.NOT_CHECKED)
    return ResultComparison(name, error, Verdict.EQUAL if error <= tolerance else Verdict.DIFFERENT)


def relative_error(before: Tensor, after: Tensor) -> float:
    """The largest absolute difference / the largest absolute value before; inf if undefined.

    Infinities and NaN must be in the same positions of both tensors.
    """
    a, b = before.double(), after.double()
    special = ~a.isfinite()
    if not torch.equal(a[special].nan_to_num(), b[special].nan_to_num()) or not torch.equal(special, ~b.isfinite()):
        return float("inf")
    difference = float((a - b)[~special].abs().amax()) if (~special).any() else 0.0
    if difference == 0:
        return 0.0
    scale = float(a[~special].abs().amax())
    return difference / scale if scale else float("inf")


def pairing(codes: Sequence[Code]) -> tuple[list[int], list[int]]:
    """By argument of the second module its index in the first; by result of the first its index in the second.

    E0660 if the modules have different arguments or results.
    """
    arguments = [_port_keys(code, code.arguments, ("name",)) for code in codes]
    results = [_port_keys(code, code.results, ("kind", "name", "index")) for code in codes]
    for side_name, sides in (("arguments", arguments), ("results", results)):
        if sorted(sides[0], key=repr) != sorted(sides[1], key=repr):
            raise InterpreterError(UNLIKE, f"the modules have different {side_name} and cannot be compared")
    return [arguments[0].index(key) for key in arguments[1]], [results[1].index(key) for key in results[0]]


def _port_keys(code: Code, ports: Sequence[Port], fields: Sequence[str]) -> list[tuple[object, ...]]:
    """For each argument or result: its identifying fields, its index among equal ones, shape and dtype."""
    names: list[tuple[object, ...]] = []
    for position, port in enumerate(ports):
        name = tuple(port.record.get(field) for field in fields)
        names.append(name if any(part is not None for part in name) else (position,))
    occurrences = [names[:position].count(name) for position, name in enumerate(names)]
    shapes = [(code.global_shape(port.type), Floats.FLOAT64.of(port.type.dtype)) for port in ports]
    return list(zip(names, occurrences, shapes, strict=True))
