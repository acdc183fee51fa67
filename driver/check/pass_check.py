"""What a pass did to a module: it is run, and what it leaves is compared with what it was given.

All ranks run in this process, in float64, on random inputs, with NaN in padding. `verify` and `bisect` both judge so.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from ...diagnostics import Span, StrettoError
from ...ir.equivalence import compare
from ...ir.equivalence.compare import Comparison
from ...ir.equivalence.compare import Verdict as Judged
from ...ir.equivalence.integer_ranges import IntegerRange
from ...ir.equivalence.random_inputs import infer_ranges, integer_arguments
from ...ir.interpreter import Stuck
from ...ir.interpreter.errors import DEADLOCK, MEMORY, MISMATCH, NO_RANGE, REPLICAS, DeadlockError
from ...ir.module import Module
from ...ir.verifier import verify
from ...passes.manager import PassFailure, PassManager, Step, Verification, step_name

_ITSELF = "(as given)"
"""In place of a pass: the module compared with itself, so that what cannot be run is not laid to a pass."""
_NO_RESULTS = "the module's main gives no results: nothing could be compared"
_SILENT = (
    "every result is all zero, holds a NaN or is nothing but rounding, before and after: nothing could be compared"
)
_NOT_THE_PASS = (MEMORY, NO_RANGE)
"""What comparing wants, and the caller can give."""


class Breakage(StrEnum):
    """In which way a pass breaks a module."""

    VALUES = "values"
    """Results differ, or ranks that should hold the same do."""
    ORDER = "order"
    """Ranks wait for each other for ever, or meet in collectives that differ."""
    INVALID = "invalid"
    """The verifier refuses what the pass leaves."""
    REFUSED = "refused"
    """The interpreter cannot run what the pass leaves."""
    FAILED = "failed"
    """The pass itself raised, or refused the module."""


@dataclass(frozen=True)
class Terms:
    """How modules are compared."""

    seed: int = 0
    """Of the random inputs."""
    tolerance: float = 1e-9
    """The largest error, relative to a result's largest value, that counts as equal."""
    memory_cap_bytes: int | None = None
    """Of all ranks together; None: half of the machine's memory."""
    ranges: Mapping[str, IntegerRange] = field(default_factory=dict)
    """By name, of integer inputs of which the module does not tell."""


def terms_of(seed: int, memory_cap_bytes: int | None, ranges: Sequence[tuple[str, int, int]]) -> Terms:
    """What the command line says; ranges are (name, low, high)."""
    by_name = {name: IntegerRange(high, low=low) for name, low, high in ranges}
    return Terms(seed, memory_cap_bytes=memory_cap_bytes, ranges=by_name)


@dataclass(frozen=True)
class ResultError:
    """A result of `main` that differs; the error is relative to its largest value."""

    number: int
    name: str
    error: float

    def __str__(self) -> str:
        return f"{self.name}: different ({self.error:.3g})"


@dataclass(frozen=True)
class PassVerdict:
    """What one pass did to the values and to the order."""

    name: str
    breakage: Breakage | None
    """None: it kept them, or nothing could be compared."""
    error: float = 0.0
    """The largest of all results, relative; inf where they cannot be had."""
    results: int = 0
    """How many were compared; those that are all zero or NaN before and after say nothing, and are not counted."""
    differ: tuple[ResultError, ...] = ()
    """The results that differ."""
    message: tuple[str, ...] = ()
    """Lines that say why, where it is not that results differ."""
    code: str = ""
    """Of the error that the message renders, or the type of the exception that the pass raised."""
    place: Span | None = None
    """Where that error says that it is."""
    stuck: tuple[Stuck, ...] = ()
    """Of ORDER: the ranks that take part, and where each is."""
    changes: bool = False
    """Whether it changes what is computed by the plan's own words, so that values are not compared."""

    @property
    def equal(self) -> bool:
        """Whether the pass was seen to keep the values."""
        return self.breakage is None and self.results > 0 and not self.changes

    @property
    def is_unchecked(self) -> bool:
        """Whether there was nothing to compare: no result, or none that says anything. The order was kept."""
        return self.breakage is None and self.results == 0 and not self.changes

    @property
    def lines(self) -> tuple[str, ...]:
        """Each result that differs, or why the module that the pass leaves cannot be run."""
        return (*map(str, self.differ), *self.message)


class Judge:
    """Runs passes on one module; `before` is what the last pass that kept the values left (a copy)."""

    def __init__(self, module: Module, terms: Terms) -> None:
        self.module = module
        self.terms = terms
        self.before = _copy(module)
        _check_names(self.before, terms.ranges)
        told = infer_ranges(self.before)
        given = {name: replace(each, ignored=told.get(name, each).ignored) for name, each in terms.ranges.items()}
        self.ranges = {**told, **given}

    def check_runs(self) -> None:
        """Raise what the interpreter has against the module as given."""
        self._compare(_ITSELF, self.before)

    def run(self, step: Step) -> PassVerdict:
        """Run a pass on the module and judge what it leaves. Errors: PassFailure, and those of the pass."""
        PassManager([step], verification=Verification.NEVER).run(self.module)
        return self.judge(step_name(step), changes=not isinstance(step, str) and not step.keeps_values)

    def try_run(self, step: Step) -> PassVerdict:
        """As `run`, where a pass that raises has failed and is told so. E0655 and E0661 are raised."""
        try:
            return self.run(step)
        except PassFailure as failure:
            cause = failure.__cause__
            kind = type(cause).__name__ if cause else type(failure).__name__
            return PassVerdict(
                step_name(step), Breakage.FAILED, math.inf, message=tuple(str(failure).splitlines()), code=kind
            )
        except StrettoError as error:
            if error.code in _NOT_THE_PASS:
                raise
            return _refusal(step_name(step), Breakage.FAILED, error)

    def judge(self, name: str, *, changes: bool = False) -> PassVerdict:
        """The verdict on the pass that has just run; to leave a module that is invalid or cannot be run breaks it.

        What a pass leaves that `changes` the function is only run.
        """
        try:
            verify(self.module)
            left = _copy(self.module)
        except StrettoError as error:
            return _refusal(name, Breakage.INVALID, error)
        try:
            if changes:
                self.before = left
            verdict = self._compare(name, left)
        except StrettoError as error:
            if error.code in _NOT_THE_PASS:
                raise
            return _refusal(name, _kind(error), error)
        if verdict.breakage is None:
            self.before = left
        return PassVerdict(name, None, changes=True) if changes and verdict.breakage is None else verdict

    def _compare(self, name: str, left: Module) -> PassVerdict:
        terms = self.terms
        found = compare(
            self.before,
            left,
            terms.seed,
            ranges=self.ranges,
            tolerance=terms.tolerance,
            max_bytes=terms.memory_cap_bytes,
        )
        return _verdict(name, found)


def _check_names(module: Module, ranges: Mapping[str, IntegerRange]) -> None:
    """E0662 for a range of what is no integer input."""
    known = integer_arguments(module)
    for name in ranges:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f'did you mean "{near[0]}"?' if near else f"integer inputs: {', '.join(known) or 'none'}"
            raise StrettoError("E0662", f'a range is given for "{name}", which is no integer input', help=hint)


def _verdict(name: str, found: Comparison) -> PassVerdict:
    differ = tuple(
        ResultError(number, each.name, each.error)
        for number, each in enumerate(found.results)
        if each.verdict is Judged.DIFFERENT
    )
    message: tuple[str, ...] = ()
    compared = len(found.results) - len(found.of(Judged.NOT_CHECKED))
    if not compared:
        message = (_SILENT if found.results else _NO_RESULTS,)
    breakage = Breakage.VALUES if differ else None
    return PassVerdict(name, breakage, found.error, compared, differ, message)


def _kind(error: StrettoError) -> Breakage:
    if error.code in (DEADLOCK, MISMATCH):
        return Breakage.ORDER
    return Breakage.VALUES if error.code == REPLICAS else Breakage.REFUSED


def _refusal(name: str, breakage: Breakage, error: StrettoError) -> PassVerdict:
    stuck = error.stuck if isinstance(error, DeadlockError) else ()
    lines = tuple(error.render().splitlines())
    return PassVerdict(name, breakage, math.inf, 0, (), lines, error.code, error.span, stuck)


def _copy(module: Module) -> Module:
    return Module.parse(module.text())
