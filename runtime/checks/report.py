"""The report of a check: one row for each tensor, and whether the check passed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from ..program.arguments import Json

TOLERANCES = {"float32": 1e-4, "float64": 1e-9}
"""By dtype: the accepted error, relative to the reference tensor's largest magnitude. Other dtypes are not judged."""


class Verdict(StrEnum):
    """The verdict of one comparison."""

    EQUAL = "equal"
    DIFFERS = "differs"
    NOT_CHECKED = "not checked"
    """The reference is zero up to rounding, so there is no relative error."""
    NOT_JUDGED = "not judged"
    """The dtype has no tolerance; the error is only shown."""


@dataclass(frozen=True)
class CheckRow:
    """One tensor: `kind` is output, gradient, parameter (after the optimizer's steps) or buffer."""

    kind: str
    name: str
    error: float
    """Largest difference, relative to the reference's largest magnitude; infinite where a value is not finite."""
    verdict: Verdict
    note: str = ""

    def to_json(self) -> dict[str, Json]:
        """One JSON object; an error that is not finite becomes a string."""
        error: Json = self.error if math.isfinite(self.error) else str(self.error)
        return {
            "kind": self.kind, "name": self.name, "error": error, "verdict": str(self.verdict), "note": self.note
        }  # fmt: skip


@dataclass(frozen=True)
class CheckReport:
    """All rows of a check of a program in `dtype`, over `steps` optimizer steps."""

    rows: tuple[CheckRow, ...]
    dtype: str
    steps: int
    seed: int

    @property
    def tolerance(self) -> float | None:
        """Relative; None where the dtype is not judged."""
        return TOLERANCES.get(self.dtype)

    @property
    def passed(self) -> bool:
        """Whether nothing differs and, where the dtype is judged, at least one tensor was compared."""
        verdicts = {row.verdict for row in self.rows}
        return Verdict.DIFFERS not in verdicts and (self.tolerance is None or Verdict.EQUAL in verdicts)

    @property
    def remark(self) -> str:
        """A remark on the whole check; may be empty."""
        return "" if self.tolerance is not None else f"{self.dtype} is not judged; use --dtype float64"

    def worst(self, kind: str) -> CheckRow | None:
        """The row of a kind with the largest error."""
        return max((row for row in self.rows if row.kind == kind), key=lambda row: row.error, default=None)

    def to_json(self) -> dict[str, Json]:
        """One JSON object."""
        return {
            "passed": self.passed, "dtype": self.dtype, "tolerance": self.tolerance, "steps": self.steps,
            "seed": self.seed, "remark": self.remark, "rows": [row.to_json() for row in self.rows],
        }  # fmt: skip


def compare(
    kind: str, name: str, reference: Tensor, value: Tensor, tolerance: float | None, rounding: float = 0.0
) -> CheckRow:
    """The row of one tensor. A reference whose largest magnitude is at most `rounding` is not checked."""
    row = _unless_comparable(kind, name, reference, value)
    if row is not None:
        return row
    reference, value = reference.detach().double(), value.detach().double()
    scale = float(reference.abs().max())
    difference = float((value - reference).abs().max())
    if scale <= rounding:
        note = "the reference is zero" if scale == 0 else "the reference is zero up to rounding"
        return CheckRow(kind, name, difference, Verdict.NOT_CHECKED, f"{note}; the error is absolute")
    return CheckRow(kind, name, difference / scale, judge(difference / scale, tolerance))


def judge(error: float, tolerance: float | None) -> Verdict:
    """The verdict on a relative error."""
    if tolerance is None:
        return Verdict.NOT_JUDGED
    return Verdict.EQUAL if error <= tolerance else Verdict.DIFFERS


def _unless_comparable(kind: str, name: str, reference: Tensor, value: Tensor) -> CheckRow | None:
    if reference.shape != value.shape:
        note = f"shape {list(value.shape)}, the reference has {list(reference.shape)}"
        return CheckRow(kind, name, math.inf, Verdict.DIFFERS, note)
    if reference.numel() == 0:
        return CheckRow(kind, name, 0.0, Verdict.NOT_CHECKED, "it has no elements")
    for tensor, owner in ((value, "the program"), (reference, "the reference")):
        if not bool(torch.isfinite(tensor).all()):
            return CheckRow(kind, name, math.inf, Verdict.DIFFERS, f"{owner} has values that are not finite")
    return None
