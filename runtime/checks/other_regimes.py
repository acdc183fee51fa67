"""A program beside the model on one device in the other regimes of values: one forward and backward in each.

Where the model itself fails or overflows, a regime says nothing. A difference counts as rounding where moving
parameters and inputs in their last places moves the model as much. Overflowing values let rounding grow beyond that, so
that only what no rounding explains is judged of them: a value that is not finite where the model has finite ones. That
is all that is judged of bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import RowsAboveBound
from ..program.arguments import DTYPES
from ..program.program import Program
from .judging import WithinTolerance
from .model_and_program import Key
from .recording import Recording, StepInputs
from .regimes import FINITE, OTHERS, Regime
from .report import TOLERANCES, CheckRow, Verdict
from .rounding import Changes, changes, largest_changes, perturbation, perturbed

Run = Callable[[Mapping[Key, Tensor], StepInputs], Recording]
"""One forward and backward of a side, from initial values and inputs."""
_FAILURES = (RuntimeError, ValueError, LookupError, ArithmeticError, AssertionError)
"""What a model raises for values that it does not take, such as a probability above 1."""
_PERTURBATIONS = 3


@dataclass(frozen=True)
class InRegimes:
    """What was found in the other regimes."""

    rows: tuple[CheckRow, ...]
    """Those that differ; each notes its regime."""
    equal: tuple[Regime, ...]
    """The regimes in which tensors were compared, and none differs."""


@dataclass(frozen=True)
class Sides:
    """Both sides of a check of `program`."""

    program: Program
    ranks: Run
    one_device: Run
    share_refusals: bool
    """Whether all ranks learn that one refuses: threads do, processes do not."""

    def compare(self, values: Mapping[Key, Tensor], step_inputs: StepInputs) -> InRegimes:
        """Run both in every other regime of these values and inputs."""
        dtype = self.program.manifest.dtype
        rows: list[CheckRow] = []
        equal = []
        for regime in _regimes_of(dtype):
            own, inputs = regime.values(values), step_inputs.in_regime(regime.input)
            if step_inputs.are(inputs) and (_is_normal(own, values) or regime is Regime.ZEROS):
                continue
            try:
                expected = self.one_device(own, inputs)
            except _FAILURES:
                continue
            if not _is_finite(expected):
                continue
            try:
                made = self.ranks(own, inputs)
            except RowsAboveBound:  # more rows come to an expert than the plan's bound has room for, as it may be
                if not self.share_refusals:
                    raise
                continue
            found = self._rows(regime, made, expected, own, inputs)
            differing = [row for row in found if row.verdict is Verdict.DIFFERS]
            rows += [replace(row, note=f"with {regime} values{row.note and '; '}{row.note}") for row in differing]
            is_compared = (
                regime in FINITE or dtype not in TOLERANCES or any(row.verdict is Verdict.EQUAL for row in found)
            )
            if is_compared and not differing:
                equal.append(regime)
        return InRegimes(tuple(rows), tuple(equal))

    def _rows(
        self,
        regime: Regime,
        found: Recording,
        expected: Recording,
        values: Mapping[Key, Tensor],
        inputs: StepInputs,
    ) -> Sequence[CheckRow]:
        dtype = self.program.manifest.dtype
        if regime in FINITE or dtype not in TOLERANCES:
            return [_not_finite(kind, name) for kind, name, tensor in found.tensors() if not _finite(tensor)]
        judge = WithinTolerance(expected, dtype, TOLERANCES[dtype], 1, {})
        rows = judge.rows(found)
        if all(row.verdict is not Verdict.DIFFERS for row in rows):
            return rows
        return replace(judge, changes=self._changes(expected, values, inputs)).rows(found)

    def _changes(self, expected: Recording, values: Mapping[Key, Tensor], inputs: StepInputs) -> Changes:
        """The largest change of each tensor over some perturbations."""
        runs = []
        for seed in range(_PERTURBATIONS):
            moved = perturbation(self.program, seed)
            with suppress(*_FAILURES):
                runs.append(changes(expected, self.one_device(perturbed(values, moved), inputs.altered(moved))))
        return largest_changes(runs)


def _regimes_of(dtype: str) -> tuple[Regime, ...]:
    """The regimes in which a program in this dtype is judged; float16 overflows by rounding alone."""
    if dtype in TOLERANCES:
        return OTHERS
    return (Regime.OVERFLOWING, Regime.ZEROS, Regime.HIDDEN_ROWS) if DTYPES[dtype] is torch.bfloat16 else ()


def _is_normal(own: Mapping[Key, Tensor], values: Mapping[Key, Tensor]) -> bool:
    return all(own[key] is value for key, value in values.items())


def _is_finite(recording: Recording) -> bool:
    return all(_finite(tensor) for _, _, tensor in recording.tensors())


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _not_finite(kind: str, name: str) -> CheckRow:
    return CheckRow(kind, name, float("inf"), Verdict.DIFFERS, "the program has values that are not finite")
