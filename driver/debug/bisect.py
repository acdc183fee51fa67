"""Bisection: the first pass of a pipeline that breaks the values or the order of a module, and the operation.

Passes run one by one and each is checked (`driver/check/pass_check.py`), so a later pass cannot hide a mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...ir.module import Module
from ...passes.manager import Step, single, step_name
from ..check.pass_check import Breakage, CheckOptions, PassChecker, PassVerdict
from .faulty_op import FaultyOp, find_faulty_op, invalid_op, op_with_dtypes

BeforePass = Callable[[int, str], None]


@dataclass(frozen=True)
class Bisection:
    """The result of `bisect`; `broken` is None where every pass kept values and order."""

    passes: tuple[str, ...]
    """The passes of the pipeline, in order."""
    broken: PassVerdict | None = None
    """The verdict of the first pass that breaks them."""
    index: int | None = None
    """The position of that pass in `passes`."""
    op: FaultyOp | None = None
    """The operation in the module after that pass. None where no operation can be named, as when the pass itself
    failed, and for a broken order: then `broken.stuck` has the operation at which each rank waits."""

    unchecked: str = ""
    """Why the values of some pass could not be compared, where no pass breaks the module."""

    @property
    def pass_name(self) -> str | None:
        """The first pass that breaks values or order."""
        return self.broken.name if self.broken else None

    @property
    def breakage(self) -> Breakage | None:
        """How that pass breaks the module."""
        return self.broken.breakage if self.broken else None


def bisect(
    module: Module, steps: Sequence[Step], options: CheckOptions | None = None, before_pass: BeforePass | None = None
) -> Bisection:
    """Run the passes on the module, which they rewrite, up to the first that breaks it.

    `before_pass` is called with the number and the name of each pass before it runs.
    Errors: E0655, E0661, and the interpreter's errors on the module as given.
    """
    single_steps = tuple(single(steps))
    names = tuple(step_name(step) for step in single_steps)
    checker = PassChecker(module, options or CheckOptions())
    checker.check_runs()
    unchecked = ""
    for number, step in enumerate(single_steps):
        if before_pass is not None:
            before_pass(number, names[number])
        verdict = checker.try_run(step)
        if verdict.breakage is not None:
            return Bisection(names, verdict, number, _faulty_op(checker, verdict))
        if verdict.is_unchecked:
            unchecked = unchecked or verdict.lines[0]
    return Bisection(names, unchecked=unchecked)


def _faulty_op(checker: PassChecker, verdict: PassVerdict) -> FaultyOp | None:
    if verdict.breakage is Breakage.INVALID:
        return invalid_op(checker.module)
    if verdict.dtypes is not None:
        return op_with_dtypes(checker.module, verdict.dtypes)
    if verdict.breakage not in (Breakage.VALUES, Breakage.REFUSED):
        return None
    wrong = [result.number for result in verdict.differing]
    return find_faulty_op(checker.before, checker.module, checker.options, checker.ranges, wrong)
