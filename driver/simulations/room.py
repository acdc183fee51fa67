"""What would make a model fit that needs more memory than a GPU has: statements, each compiled and simulated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...backends.simulator.simulation import Simulation
from ...diagnostics import StrettoError
from ...dsl.plan import Plan
from ...dsl.zero import Zero
from ..text.console import heading, say, size_text, table
from .simulation import time_text

_SHOWN = 3


@dataclass(frozen=True)
class Remedy:
    """A statement, and the step with it."""

    statement: str
    simulation: Simulation

    @property
    def peak_bytes(self) -> int:
        """Of the rank that needs most."""
        return max(stage.peak_bytes for stage in self.simulation.stages)

    @property
    def fits(self) -> bool:
        """Whether that is as much as a GPU has."""
        return self.peak_bytes <= self.simulation.memory_bytes

    def to_json(self) -> dict[str, object]:
        """Bytes and seconds."""
        return {
            "statement": self.statement, "peak_bytes": self.peak_bytes, "fits": self.fits,
            "seconds": self.simulation.seconds,
        }  # fmt: skip


def fits(simulation: Simulation) -> bool:
    """Whether every rank has the memory that it needs."""
    return all(stage.peak_bytes <= simulation.memory_bytes for stage in simulation.stages)


def remedies(plan: Plan, base: Simulation, simulated: Callable[[Plan], Simulation]) -> list[Remedy]:
    """The three cheapest statements that would make it fit, quickest step first; else those that save most.

    `simulated` compiles the model under a plan and simulates a step. Statements that the plan has, that contradict it,
    or that save nothing, are left out.
    """
    least = max(stage.peak_bytes for stage in base.stages)
    found = []
    for statement in _candidates(plan):
        try:
            remedy = Remedy(statement, simulated(Plan.parse(f"{plan.text}\n{statement}\n", plan.file)))
        except StrettoError:
            continue
        if remedy.peak_bytes < least:
            found.append(remedy)
    fitting = sorted((each for each in found if each.fits), key=lambda each: each.simulation.seconds)
    return (fitting or sorted(found, key=lambda each: each.peak_bytes))[:_SHOWN]


def _candidates(plan: Plan) -> list[str]:
    axes = ", ".join(plan.data_axes)
    has_zero = any(isinstance(statement, Zero) for statement in plan.statements)
    sharded = [f"zero {level} over {axes}" for level in (1, 2, 3)] if axes and not has_zero else []
    return [*sharded, "split loss into 8", "recompute attention", 'recompute "*"', *(_both(axes) if sharded else [])]


def _both(axes: str) -> list[str]:
    return [f'zero 3 over {axes}\nrecompute "*"']


def show_remedies(found: list[Remedy], base: Simulation) -> None:
    """Print them."""
    heading("statements that would help, each compiled and simulated")
    if not found:
        say("  none of zero, split loss and recompute saves memory under this plan")
        return
    rows = [
        (
            each.statement.replace("\n", " and "), size_text(each.peak_bytes), "fits" if each.fits else "too much",
            time_text(each.simulation.seconds), f"{each.simulation.seconds / base.seconds:.2f}",
        )
        for each in found
    ]  # fmt: skip
    table(("statement", "memory", "", "step", "of today's"), rows, right=("memory", "step", "of today's"))
