"""The report of a check: one row for each tensor, and whether the check passed."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

from ...diagnostics.raised_in import raised_text
from ..program.arguments import Json

TOLERANCES = {"float32": 1e-4, "float64": 1e-9}
"""By dtype: the accepted error, relative to the reference tensor's largest magnitude."""
EAGER_FACTOR = 4
"""In other dtypes: the accepted error against float64, as a multiple of that of eager mode in the same dtype."""


WEIGHTS, OP_DTYPES, CALLS, PLAN, CONFIG = "weights", "dtype", "calls", "plan", "config"
RAISED = "error"
TARGET = "target"
MEMORY = "memory"
REPEATED = "repeated"
PROCESS = "process"
"""The kinds of rows for which nothing is computed: on a program's first values; on lines of the model that compute in
other dtypes than eager PyTorch does; on calls of the compiled model that could not be made; on what a program has
otherwise than the plan says, and a model otherwise than its config file; on what raised an exception of Python; on a
target that was loaded otherwise than asked; on memory that is kept without use; on calls that give other bits when they
are repeated; on what calls leave changed in the process."""
_OF_OTHERS = (WEIGHTS, OP_DTYPES, CONFIG, RAISED, TARGET, MEMORY, REPEATED, PROCESS)
"""The kinds that a report counts apart from the tensors that were computed."""


class Verdict(StrEnum):
    """The verdict of one comparison."""

    EQUAL = "equal"
    DIFFERS = "differs"
    NOT_CHECKED = "not checked"
    """The reference is zero up to rounding, so there is no relative error; the absolute one is rounding, too."""


@dataclass(frozen=True)
class CheckRow:
    """One tensor: `kind` is weights, output, gradient, parameter (after all optimizer steps), buffer, or one below.

    A reduction has a row only where it is computed in another dtype than the plan says, a line of the model (`dtype`)
    where it computes in another than eager PyTorch.
    """

    kind: str
    name: str
    error: float
    """Largest difference, relative to the reference's largest magnitude; infinite where a value is not finite."""
    verdict: Verdict
    note: str = ""

    @property
    def differs(self) -> bool:
        """Whether the verdict is that it differs."""
        return self.verdict is Verdict.DIFFERS

    def to_json(self) -> dict[str, Json]:
        """One JSON object; an error that is not finite becomes a string."""
        error: Json = self.error if math.isfinite(self.error) else str(self.error)
        return {
            "kind": self.kind, "name": self.name, "error": error, "verdict": str(self.verdict), "note": self.note
        }  # fmt: skip


def raised_row(name: str, error: BaseException) -> CheckRow:
    """The row of a part under check that raised `error`."""
    return CheckRow(RAISED, name, math.inf, Verdict.DIFFERS, raised_text(error))


@dataclass(frozen=True)
class CheckReport:
    """All rows of a check of a program in `dtype`, over `steps` optimizer steps."""

    rows: tuple[CheckRow, ...]
    dtype: str
    steps: int
    seed: int
    regimes: tuple[str, ...] = ()
    """The regimes of values (`regimes.py`): that of the optimizer's steps, and the others in which nothing differs."""

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
            "criterion": self.criterion, "steps": self.steps, "seed": self.seed, "regimes": list(self.regimes),
            "rows": [row.to_json() for row in self.rows],
        }  # fmt: skip

    @property
    def computed(self) -> tuple[CheckRow, ...]:
        """The rows of what the program computes."""
        return tuple(row for row in self.rows if row.kind not in (*_OF_OTHERS, CALLS, PLAN))

    @property
    def failures(self) -> str:
        """What differs, as a sentence without its end; empty where nothing does."""
        apart = (*_OF_OTHERS, PLAN)
        differing = Counter(row.kind if row.kind in apart else "" for row in self.rows if row.differs)
        parts = (
            ("", f"tensors are not {self.criterion}"),
            (WEIGHTS, "of the first weights are not the target's"),
            (CONFIG, "values of the config file are not the model's"),
            (OP_DTYPES, "lines of the model compute in other dtypes than in eager PyTorch"),
            (RAISED, "of the parts under check raised an error"),
            (PLAN, "facts are not what the plan says"),
            (TARGET, "of the target's parts were not loaded as asked"),
            (MEMORY, "of the functions keep memory that nothing uses"),
            (PROCESS, "things are left changed in the process"),
            (REPEATED, "of the tensors have other bits when a call is repeated"),
        )
        return ", and ".join(f"{differing[kind]} {text}" for kind, text in parts if differing[kind])

    @property
    def _differs(self) -> bool:
        return any(row.differs for row in self.rows)

    @property
    def _compared(self) -> bool:
        return any(row.verdict is Verdict.EQUAL for row in self.computed)
