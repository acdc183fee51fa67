"""Whether two modules compute the same: both run in float64 on the same random inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from .rounding import is_rounding, rounding


class Verdict(StrEnum):
    """What a comparison says of one result."""

    EQUAL = "equal"
    DIFFERENT = "different"
    NOT_CHECKED = "not checked"
    """It is all zero, or holds a NaN, or is nothing but rounding, before and after: a wrong module could give that."""


@dataclass(frozen=True)
class ResultComparison:
    """One result, before and after."""

    name: str
    error: float
    """Largest absolute difference over the largest absolute value before; inf where one is not finite."""
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
        """Whether none differs, and at least one was checked."""
        verdicts = {r.verdict for r in self.results}
        return Verdict.DIFFERENT not in verdicts and Verdict.EQUAL in verdicts

    @property
    def error(self) -> float:
        """The largest error of what was checked."""
        return max((r.error for r in self.results if r.verdict is not Verdict.NOT_CHECKED), default=0.0)

    def of(self, verdict: Verdict) -> tuple[ResultComparison, ...]:
        """The results of one verdict."""
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
) -> Comparison:
    """Run two modules, of any levels, on the same inputs; `tolerance` bounds the error of an equal result.

    Inputs go together by name, results by kind, name and index, and those without by their place.

    Integer inputs are drawn from the range that the modules tell (an embedding's rows, a loss's classes and its ignored
    label), else from `ranges` by name; `values` fixes inputs by name.
    Errors: E0660 where arguments or results differ, E0661 for an unknown range, and those of `run`.
    """
    codes = [decode(before), decode(after)]
    takes, gives = _pairing(codes)
    for code in codes:  # the inputs may be too large themselves
        check(code, Floats.FLOAT64, max_bytes)
    inputs = inputs_of(codes[0], seed, ranges_of(*codes) | dict(ranges or {}), values or {})
    wanted = run(before, inputs, floats=Floats.FLOAT64, padding=padding, max_bytes=max_bytes)
    given = [inputs[at] for at in takes]
    made = run(after, given, floats=Floats.FLOAT64, padding=padding, max_bytes=max_bytes)
    results = [wanted, [made[at] for at in gives]]
    names = [result_name(port.record, i) for i, port in enumerate(codes[0].results)]
    found = [compare_tensors(n, a, b, tolerance) for n, a, b in zip(names, *results, strict=True)]
    if any(r.verdict is Verdict.DIFFERENT and isfinite(r.error) for r in found):
        moved = rounding(before, inputs, results[0], padding, max_bytes)
        found = [
            replace(r, verdict=Verdict.NOT_CHECKED)
            if r.verdict is Verdict.DIFFERENT and is_rounding(a, b, far, tolerance)
            else r
            for r, a, b, far in zip(found, *results, moved, strict=True)
        ]
    return Comparison(tuple(found))


def compare_tensors(name: str, before: Tensor, after: Tensor, tolerance: float) -> ResultComparison:
    """Compare one result; integers and booleans must be equal."""
    error = relative_error(before, after)
    says_nothing = not before.any() or bool(before.isnan().any())
    if says_nothing and error <= tolerance:
        return ResultComparison(name, error, Verdict.NOT_CHECKED)
    return ResultComparison(name, error, Verdict.EQUAL if error <= tolerance else Verdict.DIFFERENT)


def relative_error(before: Tensor, after: Tensor) -> float:
    """The largest absolute difference over the largest absolute value before; inf where that has no value.

    Infinities and NaN must stand in the same places of both.
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


def _pairing(codes: Sequence[Code]) -> tuple[list[int], list[int]]:
    """Which arguments of the first module those of the second are, and which results of the second those of the first.

    E0660 where they are not the same.
    """
    takes = [_kinds(code, code.arguments, ("name",)) for code in codes]
    gives = [_kinds(code, code.results, ("kind", "name", "index")) for code in codes]
    for what, sides in (("arguments", takes), ("results", gives)):
        if sorted(sides[0], key=repr) != sorted(sides[1], key=repr):
            raise InterpreterError(UNLIKE, f"the modules have different {what}, so that they cannot be compared")
    return [takes[0].index(kind) for kind in takes[1]], [gives[1].index(kind) for kind in gives[0]]


def _kinds(code: Code, ports: Sequence[Port], fields: Sequence[str]) -> list[tuple[object, ...]]:
    """What tells each argument or result of a module from the others, and its shape and dtype."""
    names: list[tuple[object, ...]] = []
    for place, port in enumerate(ports):
        name = tuple(port.record.get(field) for field in fields)
        names.append(name if any(part is not None for part in name) else (place,))
    turns = [names[:place].count(name) for place, name in enumerate(names)]
    shapes = [(code.global_shape(port.type), Floats.FLOAT64.of(port.type.dtype)) for port in ports]
    return list(zip(names, turns, shapes, strict=True))
