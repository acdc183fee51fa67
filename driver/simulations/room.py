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


@dataclass(frozen=True)
class Remedies:
    """The statements to show, and what became of the others."""

    shown: list[Remedy]
    others: list[tuple[str, str]]
    """(statement, why it is not shown)."""


def fits(simulation: Simulation) -> bool:
    """Whether every rank has the memory that it needs."""
    return all(stage.peak_bytes <= simulation.memory_bytes for stage in simulation.stages)


def remedies(plan: Plan, base: Simulation, simulated: Callable[[Plan], Simulation]) -> Remedies:
    """The three cheapest statements that would make it fit, quickest step first; else those that save most.

    `simulated` compiles the model under a plan and simulates a step; it may refuse the plan with a StrettoError.
    """
    least = max(stage.peak_bytes for stage in base.stages)
    found, others = [], []
    for statement in _candidates(plan):
        try:
            remedy = Remedy(statement, simulated(Plan.parse(f"{plan.text}\n{statement}\n", plan.file)))
        except StrettoError as error:
            others.append((statement, f"refused: {error.message}"))
            continue
        if remedy.peak_bytes < least:
            found.append(remedy)
        else:
            others.append((statement, "saves nothing"))
    fitting = sorted((each for each in found if each.fits), key=lambda each: each.simulation.seconds)
    shown = (fitting or sorted(found, key=lambda each: each.peak_bytes))[:_SHOWN]
    others += [
        (each.statement, f"needs {size_text(each.peak_bytes)}, a step of {time_text(each.simulation.seconds)}")
        for each in found
        if each not in shown
    ]
    return Remedies(shown, others)


def _candidates(plan: Plan) -> list[str]:
    axes = ", ".join(plan.data_axes)
    has_zero = any(isinstance(statement, Zero) for statement in plan.statements)
    sharded = [f"zero {level} over {axes}" for level in (1, 2, 3)] if axes and not has_zero else []
    return [*sharded, "split loss into 8", "recompute attention", 'recompute "*"', *(_both(axes) if sharded else [])]


def _both(axes: str) -> list[str]:
    return [f'zero 3 over {axes}\nrecompute "*"']


def show_remedies(found: Remedies, base: Simulation) -> None:
    """Print them."""
    heading("statements that would help, each compiled and simulated")
    _show_table(found.shown, base)
    for statement, why in found.others:
        say(f"  {_in_a_line(statement)}: {why}")


def _in_a_line(statement: str) -> str:
    return statement.replace("\n", " and ")


def _show_table(found: list[Remedy], base: Simulation) -> None:
    if not found:
        say("  none of zero, split loss and recompute saves memory under this plan")
        return
    rows = [
        (
            _in_a_line(each.statement), size_text(each.peak_bytes), "fits" if each.fits else "too much",
            time_text(each.simulation.seconds), f"{each.simulation.seconds / base.seconds:.2f}",
        )
        for each in found
    ]  # fmt: skip
    table(("statement", "memory", "", "step", "of today's"), rows, right=("memory", "step", "of today's"))
