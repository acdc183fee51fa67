"""The smallest module found that shows the same failure: delta debugging of a module under the pass that fails.

The passes before it run once; what is reduced is the module that it is given. Results of `main` go first, then
operations, which are replaced by new arguments, first many at once, then fewer, then one by one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ...diagnostics import StrettoError
from ...ir.module import Module
from ...ir.source_text import read_module
from ...ir.verifier import verify
from ...passes.manager import PassFailure, Step, single, step_name
from ..check.pass_check import Breakage, Judge, PassVerdict, Terms
from .reduction_edits import (
    Site,
    argument_count,
    bypass,
    count,
    give_from_outside,
    keep_results,
    result_count,
    sites,
    trim,
)

_RUNS = (Breakage.VALUES, Breakage.ORDER, Breakage.REFUSED)
"""Breakages that show when the module is run; before the pass it must run."""
Told = Callable[[int], None]


@dataclass(frozen=True)
class Reduced:
    """The smallest module found, and the pass that fails on it."""

    text: str
    step: Step
    breakage: Breakage
    code: str
    """Of the error, or the exception's type; empty where results differ."""
    before: int
    """How many operations the module had that the pass was given."""
    after: int
    tries: int
    seconds: float
    is_done: bool
    """Whether nothing smaller was left to try, or time was up."""

    @property
    def pass_name(self) -> str:
        """The pass that fails."""
        return step_name(self.step)


def reduce_module(
    module: Module, steps: Sequence[Step], terms: Terms, seconds: float, told: Told = lambda count: None
) -> Reduced:
    """Reduce a module under the first pass that breaks it; `told` hears the size after each step.

    Errors: E0420 where no pass does, and those of `bisect`.
    """
    start = time.monotonic()
    text, step, verdict = _failing(module, steps, terms)
    search = _Search(step, verdict, terms, start + seconds, text, told)
    before = search.size
    search.results(verdict)
    is_done = search.operations()
    return Reduced(
        search.text, step, search.breakage, verdict.code, before, search.size, search.tries,
        time.monotonic() - start, is_done,
    )  # fmt: skip


def _failing(module: Module, steps: Sequence[Step], terms: Terms) -> tuple[str, Step, PassVerdict]:
    """The module before the first pass that breaks it, and that pass."""
    judge = Judge(module, terms)
    judge.check_runs()
    for step in single(steps):
        text = module.text()
        verdict = judge.try_run(step)
        if verdict.breakage is not None:
            return text, step, verdict
    raise StrettoError(
        "E0420", "no pass of the pipeline fails, or changes values or order", help="there is nothing to reduce"
    )


class _Search:
    """The smallest module so far."""

    def __init__(self, step: Step, verdict: PassVerdict, terms: Terms, deadline: float, text: str, told: Told) -> None:
        self.step = step
        self.breakage = verdict.breakage or Breakage.VALUES
        self.code = verdict.code
        self.terms = terms
        self.deadline = deadline
        self.text = text
        self.told = told
        self.tries = 0
        self.cost = _cost(read_module(text, "<module>"))

    @property
    def size(self) -> int:
        """How many operations there are."""
        return self.cost[0]

    @property
    def is_late(self) -> bool:
        return time.monotonic() > self.deadline

    def results(self, verdict: PassVerdict) -> None:
        """Keep one result of `main` if one is enough: the worst, where results differ; else halve them."""
        for each in sorted(verdict.differ, key=lambda each: -each.error):
            if self.is_late or self.attempt(partial(keep_results, kept={each.number})):
                return
        chunk = self._results() // 2
        while chunk and not self.is_late:
            at = 0
            while at < self._results() and not self.is_late:
                kept = [i for i in range(self._results()) if not at <= i < at + chunk]
                if not self.attempt(partial(keep_results, kept=kept)):
                    at += chunk
            chunk //= 2

    def operations(self) -> bool:
        """Replace operations until no single one can be; False where time was up before."""
        while not self.is_late:
            before = self.cost
            self._chunks()
            self._bypasses()
            if self.cost == before:
                return not self.is_late
        return False

    def attempt(self, edit: Callable[[Module], None]) -> bool:
        """Edit the module; keep what that gives if it is smaller and shows the same failure."""
        self.tries += 1
        module = Module.parse(self.text)
        edit(module)
        trim(module)
        cost = _cost(module)
        if cost >= self.cost or not self._shows(module):
            return False
        self.text, self.cost = module.text(), cost
        self.told(self.size)
        return True

    def _chunks(self) -> None:
        chunk = max(1, len(self._sites()) // 2)
        while chunk and not self.is_late:
            at = 0
            while at < len(found := self._sites()) and not self.is_late:
                if not self.attempt(partial(give_from_outside, chosen=found[at : at + chunk])):
                    at += chunk
            chunk //= 2

    def _bypasses(self) -> None:
        at = 0
        while at < len(found := self._sites()) and not self.is_late:
            if not self.attempt(partial(bypass, site=found[at])):
                at += 1

    def _shows(self, module: Module) -> bool:
        """Whether a module, which stays as it is, is valid and fails in the same way."""
        try:
            verify(module)
            judge = Judge(Module.parse(module.text()), self.terms)
            if self.breakage in _RUNS:
                judge.check_runs()
            verdict = judge.try_run(self.step)
        except (StrettoError, PassFailure):
            return False
        return (verdict.breakage, verdict.code) == (self.breakage, self.code)

    def _sites(self) -> list[Site]:
        return sites(Module.parse(self.text))

    def _results(self) -> int:
        return result_count(Module.parse(self.text))


def _cost(module: Module) -> tuple[int, int]:
    """Operations first, then what the program takes and gives."""
    return count(module), argument_count(module) + result_count(module)
