"""Passes of the real pipeline that plant a fault in what they leave, so that `bisect` has something to find.

A fault that changes no result is none: another layer's key bias, which the softmax takes off, or a rank's offset of 2
in place of 1 that is compared with 0. So each is planted at the first place, of those that seeds draw, where it shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import ClassVar

from stretto.diagnostics import StrettoError
from stretto.ir.equivalence import random_inputs
from stretto.ir.equivalence.integer_ranges import IntegerRange
from stretto.ir.equivalence.random_inputs import infer_ranges
from stretto.ir.interpreter import Floats, run
from stretto.ir.module import Module
from stretto.ir.verifier import verify
from stretto.passes.base import Pass, Report
from stretto.passes.manager import Step, step_name

from .checkers import Baseline
from .mutants import Alteration, alter

_MOST_SEEDS = 20
"""So many places are tried."""


@dataclass(frozen=True)
class Planting(Pass):
    """Runs another pass, then alters the module; subclasses bear the other pass's name."""

    step: Step
    kind: str
    ranges: Mapping[str, IntegerRange]
    planted: list[Alteration] = field(default_factory=list)

    def run(self, module: Module) -> Report:
        """As the other pass, and one fault more; AssertionError where the module has no place for it."""
        if isinstance(self.step, str):
            module.run_upstream(self.step)
        else:
            self.step.run(module)
        altered = alter(module, self.kind, Random(self._seed(module)))
        assert altered is not None
        self.planted.append(altered)
        return Report(1)

    def _seed(self, module: Module) -> int:
        """The first seed by which a result changes."""
        text = module.text()
        right = Module.parse(text)
        inputs = random_inputs(right, 0, {**infer_ranges(right), **self.ranges})
        expected = Baseline(right, inputs, run(right, inputs, floats=Floats.FLOAT64))
        for seed in range(_MOST_SEEDS):
            altered = Module.parse(text)
            if alter(altered, self.kind, Random(seed)) is not None and _shows(altered, expected):
                return seed
        raise AssertionError(f"no place for {self.kind} after {self.name}")


def _shows(altered: Module, expected: Baseline) -> bool:
    """Whether an altered module is refused, does not run, or gives another result."""
    try:
        verify(altered)
        return bool(expected.differ(run(altered, expected.inputs, floats=Floats.FLOAT64)))
    except StrettoError:
        return True


def planting(step: Step, kind: str, ranges: Mapping[str, IntegerRange]) -> Planting:
    """A pass of the same name that plants a fault of a kind."""

    class Named(Planting):
        name: ClassVar[str] = step_name(step)

    return Named(step, kind, ranges)


def with_fault(
    steps: Sequence[Step], index: int, kind: str, ranges: Mapping[str, IntegerRange]
) -> tuple[list[Step], Planting]:
    """The pipeline in which one pass plants a fault, and that pass; `ranges` are those of the integer inputs."""
    harmful = planting(steps[index], kind, ranges)
    return [*steps[:index], harmful, *steps[index + 1 :]], harmful
