"""Which decisions of a module took only one side in all runs: comparisons, clamps, rectifiers and masks.

What a check says of such a module holds for the side that was taken. An observer of runs on one rank collects the sides
from the results of operations: a boolean that was always true, a clamp that never clamped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..interpreter.code import Code, Step
from ..interpreter.observing import Path

_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "logical_and", "logical_or", "logical_not")
_CLAMPS = ("clamp", "clamp_min", "clamp_max", "hardtanh", "relu", "threshold_backward")


@dataclass(frozen=True)
class OneSided:
    """A decision of which no run took one side."""

    op: str
    place: str
    never: str
    """The side: "true", "false", "clamped" or "passed through"."""

    def __str__(self) -> str:
        return f"{self.op} ({self.place}) was never {self.never}"


@dataclass
class Sides:
    """An observer that collects the sides that decisions take, over several runs of one module at level `aten`."""

    code: Code
    _taken: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    _steps: dict[Path, Step] = field(default_factory=dict)

    def begins(self, rank: int, path: Path) -> None:
        """See `Observer`."""

    def made(self, rank: int, path: Path, values: Sequence[Any]) -> None:
        """See `Observer`."""
        step = self._step(path)
        family = step.name.split(".")[1] if step.name.startswith("aten.") else ""
        for value in values:
            if isinstance(value, Tensor) and value.numel() and (sides := _sides(family, step, value)):
                self._taken.setdefault((step.name, str(step.origin)), set()).update(sides)

    def one_sided(self) -> Iterator[OneSided]:
        """The decisions that took one side only, in the order of their first run."""
        for (op, place), taken in self._taken.items():
            for side, other in _OPPOSITES.items():
                if side in taken and other not in taken:
                    yield OneSided(op, place, other)

    def _step(self, path: Path) -> Step:
        if path not in self._steps:
            body = self.code.entries[0]
            for position in path[:-1]:
                body = self.code.bodies[body.steps[position].callee]
            self._steps[path] = body.steps[path[-1]]
        return self._steps[path]


_OPPOSITES: Mapping[str, str] = {
    "true": "false", "false": "true", "clamped": "passed through", "passed through": "clamped"
}  # fmt: skip


def _sides(family: str, step: Step, value: Tensor) -> set[str]:
    if family in _COMPARISONS and value.dtype is torch.bool:
        return {side for side, there in (("true", value.any()), ("false", (~value).any())) if bool(there)}
    if family in _CLAMPS and value.dtype.is_floating_point:
        at_bound = torch.zeros_like(value, dtype=torch.bool)
        for bound in _bounds(family, step):
            at_bound |= value == bound
        return {
            side for side, there in (("clamped", at_bound.any()), ("passed through", (~at_bound).any())) if bool(there)
        }
    return set()


def _bounds(family: str, step: Step) -> list[float]:
    if family in ("relu", "threshold_backward"):
        return [0.0]
    constants = [a for a in step.args[1:] if isinstance(a, int | float)]
    return [float(a) for a in constants] or ([-1.0, 1.0] if family == "hardtanh" else [])
