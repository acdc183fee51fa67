"""Which pass of a pipeline breaks the values or the order of a module, in which way, and at which operation.

Passes run one by one, and what each leaves is compared with what it was given (`judge.py`), so that a later pass that
hides a mistake does not hide it here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...ir.module import Module
from ...passes.manager import Step, single, step_name
from ..check.pass_check import Breakage, Judge, PassVerdict, Terms
from .faulty_op import GuiltyOp, find_guilty_op, invalid_op

Told = Callable[[int, str], None]


@dataclass(frozen=True)
class Bisection:
    """What was found; `broken` is None where every pass kept values and order."""

    passes: tuple[str, ...]
    """Those of the pipeline, in order."""
    broken: PassVerdict | None = None
    """Of the first pass that breaks them."""
    index: int | None = None
    """Which of `passes` that is."""
    op: GuiltyOp | None = None
    """The operation in the module that it left; None where none can be named, as when the pass itself failed, and for
    an order that is broken: `broken.stuck` then has the operation of each rank that takes part."""

    unchecked: str = ""
    """Where no pass breaks the module, but the values of some could not be compared: why."""

    @property
    def pass_name(self) -> str | None:
        """The first pass that breaks values or order."""
        return self.broken.name if self.broken else None

    @property
    def breakage(self) -> Breakage | None:
        """In which way."""
        return self.broken.breakage if self.broken else None


def bisect(module: Module, steps: Sequence[Step], terms: Terms | None = None, told: Told | None = None) -> Bisection:
    """Run the passes on the module, which they rewrite, up to the first that breaks it.

    `told` is called with the number and the name of each pass before it runs.
    Errors: E0655, E0661, and those with which the interpreter refuses the module as given.
    """
    each_step = tuple(single(steps))
    names = tuple(step_name(step) for step in each_step)
    judge = Judge(module, terms or Terms())
    judge.check_runs()
    why = ""
    for number, step in enumerate(each_step):
        if told is not None:
            told(number, names[number])
        verdict = judge.try_run(step)
        if verdict.breakage is not None:
            return Bisection(names, verdict, number, _guilty(judge, verdict))
        if verdict.is_unchecked:
            why = why or verdict.lines[0]
    return Bisection(names, unchecked=why)


def _guilty(judge: Judge, verdict: PassVerdict) -> GuiltyOp | None:
    if verdict.breakage is Breakage.INVALID:
        return invalid_op(judge.module)
    if verdict.breakage not in (Breakage.VALUES, Breakage.REFUSED):
        return None
    wrong = [each.number for each in verdict.differ]
    return find_guilty_op(judge.before, judge.module, judge.terms, judge.ranges, wrong)
