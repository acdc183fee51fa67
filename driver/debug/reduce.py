"""Delta debugging: find the smallest module on which a pass fails in the same way.

The passes before the failing one run once; the module that it gets is reduced. First results of `main` are dropped.
Then operations are replaced by new arguments: many at once, then fewer, then one by one.
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
from ..check.pass_check import Breakage, CheckOptions, PassChecker, PassVerdict
from .reduction_edits import (
    OperationIndex,
    argument_count,
    bypass,
    keep_results,
    operation_count,
    remove_unused,
    replace_by_arguments,
    replaceable_operations,
    result_count,
)

_RUNS = (Breakage.VALUES, Breakage.ORDER, Breakage.REFUSED)
"""Breakages that show when the module runs; the module before the pass must run without error."""
OnSize = Callable[[int], None]
"""Called with the number of operations after each successful edit."""


@dataclass(frozen=True)
class Reduced:
    """The smallest module found, and the pass that fails on it."""

    text: str
    step: Step
    breakage: Breakage
    code: str
    """The error's code, or the exception's type; empty where results differ."""
    before: int
    """The number of operations before the reduction."""
    after: int
    """The number of operations after the reduction."""
    tries: int
    seconds: float
    is_done: bool
    """False where time ran out before everything was tried."""

    @property
    def pass_name(self) -> str:
        """The pass that fails."""
        return step_name(self.step)


def reduce_module(
    module: Module,
    steps: Sequence[Step],
    options: CheckOptions,
    seconds: float,
    on_size: OnSize = lambda operation_count: None,
) -> Reduced:
    """Reduce a module under the first pass that breaks it; `on_size` gets the size after each successful edit.

    Errors: E0420 where no pass breaks it, and those of `bisect`.
    """
    start = time.monotonic()
    text, step, verdict = _failing(module, steps, options)
    search = _Search(step, verdict, options, start + seconds, text, on_size)
    before = search.size
    search.reduce_results(verdict)
    is_done = search.reduce_operations()
    return Reduced(
        search.text, step, search.breakage, verdict.code, before, search.size, search.tries,
        time.monotonic() - start, is_done,
    )  # fmt: skip


def _failing(module: Module, steps: Sequence[Step], options: CheckOptions) -> tuple[str, Step, PassVerdict]:
    """The text before the first pass that breaks the module, that pass, and its verdict."""
    checker = PassChecker(module, options)
    checker.check_runs()
    for step in single(steps):
        text = module.text()
        verdict = checker.try_run(step)
        if verdict.breakage is not None:
            return text, step, verdict
    raise StrettoError(
        "E0420",
        "every pass of the pipeline keeps values and order, so there is nothing to reduce",
        expected="a pass that fails, or that changes values or order",
        help="pass other values with --seed, or check with `stretto bisect`",
    )


class _Search:
    """The smallest module found so far, and the edits that are tried on it."""

    def __init__(
        self, step: Step, verdict: PassVerdict, options: CheckOptions, deadline: float, text: str, on_size: OnSize
    ) -> None:
        self.step = step
        self.breakage = verdict.breakage or Breakage.VALUES
        self.code = verdict.code
        self.options = options
        self.deadline = deadline
        self.text = text
        self.on_size = on_size
        self.tries = 0
        self.cost = _cost(read_module(text, "<module>"))

    @property
    def size(self) -> int:
        """The number of operations."""
        return self.cost[0]

    @property
    def is_late(self) -> bool:
        return time.monotonic() > self.deadline

    def reduce_results(self, verdict: PassVerdict) -> None:
        """Keep a single result of `main` if one shows the failure, the worst first; else drop results by halves."""
        for result in sorted(verdict.differing, key=lambda result: -result.error):
            if self.is_late or self.attempt(partial(keep_results, kept={result.number})):
                return
        chunk = self._results() // 2
        while chunk and not self.is_late:
            start = 0
            while start < self._results() and not self.is_late:
                kept = [i for i in range(self._results()) if not start <= i < start + chunk]
                if not self.attempt(partial(keep_results, kept=kept)):
                    start += chunk
            chunk //= 2

    def reduce_operations(self) -> bool:
        """Replace operations until no single one can be replaced; False where time ran out."""
        while not self.is_late:
            before = self.cost
            self._replace_chunks()
            self._bypass_operations()
            if self.cost == before:
                return not self.is_late
        return False

    def attempt(self, edit: Callable[[Module], None]) -> bool:
        """Edit the module; keep the result if it is smaller and shows the same failure."""
        self.tries += 1
        module = Module.parse(self.text)
        edit(module)
        remove_unused(module)
        cost = _cost(module)
        if cost >= self.cost or not self._fails_alike(module):
            return False
        self.text, self.cost = module.text(), cost
        self.on_size(self.size)
        return True

    def _replace_chunks(self) -> None:
        chunk = max(1, len(self._replaceable()) // 2)
        while chunk and not self.is_late:
            start = 0
            while start < len(ops := self._replaceable()) and not self.is_late:
                if not self.attempt(partial(replace_by_arguments, chosen=ops[start : start + chunk])):
                    start += chunk
            chunk //= 2

    def _bypass_operations(self) -> None:
        index = 0
        while index < len(ops := self._replaceable()) and not self.is_late:
            if not self.attempt(partial(bypass, index=ops[index])):
                index += 1

    def _fails_alike(self, module: Module) -> bool:
        """Whether a module is valid and fails in the same way. The module is not changed."""
        try:
            verify(module)
            checker = PassChecker(Module.parse(module.text()), self.options)
            if self.breakage in _RUNS:
                checker.check_runs()
            verdict = checker.try_run(self.step)
        except (StrettoError, PassFailure):
            return False
        return (verdict.breakage, verdict.code) == (self.breakage, self.code)

    def _replaceable(self) -> list[OperationIndex]:
        return replaceable_operations(Module.parse(self.text))

    def _results(self) -> int:
        return result_count(Module.parse(self.text))


def _cost(module: Module) -> tuple[int, int]:
    """The number of operations, then the number of arguments and results."""
    return operation_count(module), argument_count(module) + result_count(module)
