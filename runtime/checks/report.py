"""The report of a check: one row for each tensor, and whether the check passed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from ..program.arguments import Json

TOLERANCES = {"float32": 1e-4, "float64": 1e-9}
"""By dtype: the accepted error, relative to the reference tensor's largest magnitude."""
EAGER_FACTOR = 4
"""In other dtypes: the accepted error against float64, as a multiple of that of eager mode in the same dtype."""


WEIGHTS = "weights"
"""The kind of rows that compare a program's first values with those of its target: nothing is computed for them."""


class Verdict(StrEnum):
    """The verdict of one comparison."""

    EQUAL = "equal"
    DIFFERS = "differs"
    NOT_CHECKED = "not checked"
    """The reference is zero up to rounding, so there is no relative error; the absolute one is rounding, too."""


@dataclass(frozen=True)
class CheckRow:
    """One tensor: `kind` is weights, output, gradient, parameter (after the optimizer's steps), buffer or reduction.

    A reduction has a row only where it is computed in another dtype than the plan says.
    """

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
        """Relative; None where errors are bounded by those of eager mode."""
        return TOLERANCES.get(self.dtype)

    @property
    def passed(self) -> bool:
        """Whether nothing differs and at least one computed tensor was compared."""
        return not self._differs and self._compared

    @property
    def is_unjudged(self) -> bool:
        """Whether nothing differs, but nothing could be compared either."""
        return not self._differs and not self._compared

    @property
    def criterion(self) -> str:
        """What an equal tensor satisfies, as the end of a sentence: "equal within 1e-04 (relative)"."""
        if self.tolerance is not None:
            return f"equal within {self.tolerance:.0e} (relative)"
        return f"within {EAGER_FACTOR} times the error of eager {self.dtype} against float64"

    def worst(self, kind: str) -> CheckRow | None:
        """The row of a kind with the largest error."""
        return max((row for row in self.rows if row.kind == kind), key=lambda row: row.error, default=None)

    def to_json(self) -> dict[str, Json]:
        """One JSON object."""
        verdict = "passed" if self.passed else "not judged" if self.is_unjudged else "differs"
        return {
            "passed": self.passed, "verdict": verdict, "dtype": self.dtype, "tolerance": self.tolerance,
            "criterion": self.criterion, "steps": self.steps, "seed": self.seed,
            "rows": [row.to_json() for row in self.rows],
        }  # fmt: skip

    @property
    def computed(self) -> tuple[CheckRow, ...]:
        """The rows of what the program computes."""
        return tuple(row for row in self.rows if row.kind != WEIGHTS)

    @property
    def _differs(self) -> bool:
        return any(row.verdict is Verdict.DIFFERS for row in self.rows)

    @property
    def _compared(self) -> bool:
        return any(row.verdict is Verdict.EQUAL for row in self.computed)
