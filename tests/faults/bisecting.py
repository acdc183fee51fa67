"""Passes of the real pipeline that plant a fault in what they leave, so that `bisect` has something to find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import ClassVar

from stretto.ir.module import Module
from stretto.passes.base import Pass, Report
from stretto.passes.manager import Step, step_name

from .mutants import Alteration, alter


@dataclass(frozen=True)
class Planting(Pass):
    """Runs another pass, then alters the module; subclasses bear the other pass's name."""

    step: Step
    kind: str
    seed: int
    planted: list[Alteration] = field(default_factory=list)

    def run(self, module: Module) -> Report:
        """As the other pass, and one fault more; AssertionError where the module has no place for it."""
        if isinstance(self.step, str):
            module.run_upstream(self.step)
        else:
            self.step.run(module)
        altered = alter(module, self.kind, Random(self.seed))
        assert altered is not None, f"no place for {self.kind} after {self.name}"
        self.planted.append(altered)
        return Report(1)


def planting(step: Step, kind: str, seed: int) -> Planting:
    """A pass of the same name that plants a fault of a kind."""

    class Named(Planting):
        name: ClassVar[str] = step_name(step)

    return Named(step, kind, seed)


def with_fault(steps: Sequence[Step], index: int, kind: str, seed: int) -> tuple[list[Step], Planting]:
    """The pipeline in which one pass plants a fault, and that pass."""
    harmful = planting(steps[index], kind, seed)
    return [*steps[:index], harmful, *steps[index + 1 :]], harmful
