"""Check one pass: run it, and compare the module after it with the module before it.

The interpreter runs all ranks in this process, in float64, on random inputs, with NaN in padding. `verify`, `bisect`
and `reduce` use this check.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from ...diagnostics import Span, StrettoError
from ...diagnostics.raised_in import raised_text
from ...ir.equivalence import compare
from ...ir.equivalence.compare import Comparison
from ...ir.equivalence.compare import Verdict as ResultVerdict
from ...ir.equivalence.dtype_contract import DtypeProblem, dtype_problems
from ...ir.equivalence.integer_ranges import IntegerRange
from ...ir.equivalence.microbatch_mean import compare_mean
from ...ir.equivalence.random_inputs import infer_ranges, integer_arguments
from ...ir.equivalence.regimes import Regime
from ...ir.interpreter import Stuck
from ...ir.interpreter.code import decode
from ...ir.interpreter.errors import DEADLOCK, MEMORY, MISMATCH, NO_RANGE, REPLICAS, DeadlockError
from ...ir.module import Module
from ...ir.verifier import verify
from ...passes.manager import PassFailure, PassManager, Step, Verification, step_name
from .lowered_code import other_constants
from .lowering_check import LOWERING, can_be_lowered, compare_with_module, records_of

_ITSELF = "(as given)"
"""The name where no pass ran: the module is compared with itself, so that no pass is blamed for its errors."""
_NO_RESULTS = "the module's main gives no results: nothing could be compared"
_SILENT = (
    "every result is all zero, holds a NaN or is nothing but rounding, before and after: nothing could be compared"
)
_NOT_THE_PASS = (MEMORY, NO_RANGE)
"""Errors of the comparison, not of the pass: the user can raise the cap or give a range."""


class Breakage(StrEnum):
    """In which way a pass breaks a module."""

    VALUES = "values"
    """Results differ, or ranks hold different values of a replicated tensor."""
    ORDER = "order"
    """Ranks deadlock, or run different collectives."""
    INVALID = "invalid"
    """The verifier refuses the module after the pass."""
    REFUSED = "refused"
    """The interpreter cannot run the module after the pass."""
    DTYPES = "dtypes"
    """Ops or reductions have other dtypes than before, or than the plan says."""
    FAILED = "failed"
    """The pass itself raised, or refused the module."""


class Meaning(StrEnum):
    """What the module after a pass computes."""

    SAME = "what the module before it computes"
    MEAN = "the mean of what the module before it computes of each microbatch"
    OTHER = "something else, as the plan says"


@dataclass(frozen=True)
class CheckOptions:
    """How modules are compared."""

    seed: int = 0
    """The seed of the random inputs."""
    tolerance: float = 1e-9
    """The largest error, relative to a result's largest value, that counts as equal."""
    memory_cap_bytes: int | None = None
    """For all ranks together; None: half of the machine's memory."""
    ranges: Mapping[str, IntegerRange] = field(default_factory=dict)
    """Ranges of integer inputs, by name, where the module does not tell them."""
    regime: Regime = Regime.NORMAL
    """What the floating inputs look like."""


def check_options(seed: int, memory_cap_bytes: int | None, ranges: Sequence[tuple[str, int, int]]) -> CheckOptions:
    """The options from the command line; ranges are (name, low, high)."""
    by_name = {name: IntegerRange(high, low=low) for name, low, high in ranges}
    return CheckOptions(seed, memory_cap_bytes=memory_cap_bytes, ranges=by_name)


def _meaning_of(step: Step) -> Meaning:
    if isinstance(step, str) or step.keeps_values:
        return Meaning.SAME
    return Meaning.MEAN if step.averages_microbatches else Meaning.OTHER


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
    """Whether one pass kept the values and the order."""

    name: str
    breakage: Breakage | None
    """None: the pass kept them, or nothing could be compared."""
    error: float = 0.0
    """The largest relative error of all results; inf where the module could not be run."""
    results: int = 0
    """How many results were compared; those that are all zero or NaN before and after are not counted."""
    differing: tuple[ResultError, ...] = ()
    """The results that differ."""
    message: tuple[str, ...] = ()
    """The lines of the error, where the breakage is not that results differ."""
    code: str = ""
    """The error's code, or the type of the exception that the pass raised."""
    place: Span | None = None
    """The error's place."""
    stuck: tuple[Stuck, ...] = ()
    """For ORDER: the ranks in the deadlock, and the operation at which each waits."""
    dtypes: DtypeProblem | None = None
    """For DTYPES: the first op that computes in another dtype, where there is one."""
    meaning: Meaning = Meaning.SAME
    """What the pass is to make of the module."""

    @property
    def changes(self) -> bool:
        """Whether the pass changes the function in a way of its own, so that values are not compared."""
        return self.meaning is Meaning.OTHER

    @property
    def equal(self) -> bool:
        """Whether values were compared and are equal."""
        return self.breakage is None and self.results > 0 and not self.changes

    @property
    def is_unchecked(self) -> bool:
        """Whether the order was kept but no result could be compared."""
        return self.breakage is None and self.results == 0 and not self.changes

    @property
    def lines(self) -> tuple[str, ...]:
        """A line for each result that differs, or the error."""
        return (*map(str, self.differing), *self.message)


class PassChecker:
    """Runs passes on one module and checks each; `before` is a copy of the module before the pass."""

    def __init__(self, module: Module, options: CheckOptions) -> None:
        self.module = module
        self.options = options
        self.before = _copy(module)
        self.ranges = with_stated_ranges(self.before, options.ranges)

    def check_runs(self) -> None:
        """Run the module as given; raises the interpreter's error if it cannot be run."""
        self._compare(_ITSELF, self.before)

    def run(self, step: Step) -> PassVerdict:
        """Run a pass on the module and check the result. Errors: PassFailure, and those of the pass."""
        PassManager([step], verification=Verification.NEVER).run(self.module)
        before = self.before
        return self._with_dtypes(step, before, self.verdict_on(step_name(step), _meaning_of(step)))

    def try_run(self, step: Step) -> PassVerdict:
        """As `run`, but a pass that raises gets the verdict FAILED. Errors E0655, E0661."""
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

    def verdict_on(self, name: str, meaning: Meaning = Meaning.SAME) -> PassVerdict:
        """The verdict on the pass that has just run; an invalid module, or one that cannot be run, is a breakage.

        If the pass changes the function in a way of its own, the module is run but its values are not compared.
        """
        try:
            verify(self.module)
            after = _copy(self.module)
        except StrettoError as error:
            return _refusal(name, Breakage.INVALID, error)
        try:
            if meaning is Meaning.OTHER:
                self.before = after
            verdict = self._compare(name, after, meaning)
        except StrettoError as error:
            if error.code in _NOT_THE_PASS:
                raise
            return _refusal(name, _kind(error), error)
        if verdict.breakage is None:
            self.before = after
        if meaning is Meaning.OTHER and verdict.breakage is None:
            return PassVerdict(name, None, meaning=meaning)
        return replace(verdict, meaning=meaning)

    def _with_dtypes(self, step: Step, before: Module, verdict: PassVerdict) -> PassVerdict:
        """The verdict, or DTYPES where values are kept and the contract of dtypes is not."""
        if verdict.breakage is not None:
            return verdict
        contract = "" if isinstance(step, str) else step.broken_contract(self.module)
        problem = next(dtype_problems(decode(before), decode(self.module)), None)
        if problem is None and not contract:
            return verdict
        message = (contract,) if problem is None else (f"{problem.message} (in @{problem.function}, {problem.origin})",)
        return replace(verdict, breakage=Breakage.DTYPES, message=message, dtypes=problem)

    def lowered(self) -> PassVerdict | None:
        """The verdict on lowering the module to a program; None for a module that is not at the end of the passes."""
        if not can_be_lowered(self.before):
            return None
        options, program = self.options, records_of(self.before)
        try:
            comparison = compare_with_module(
                self.before,
                program,
                options.seed,
                self.ranges,
                options.tolerance,
                options.memory_cap_bytes,
                options.regime,
            )
        except StrettoError as error:
            if error.code in _NOT_THE_PASS:
                raise
            return _refusal(LOWERING, _kind(error), error)
        verdict = verdict_of(LOWERING, comparison)
        other = other_constants(self.before, program)
        return replace(verdict, breakage=verdict.breakage or Breakage.VALUES, message=(other,)) if other else verdict

    def _compare(self, name: str, after: Module, meaning: Meaning = Meaning.SAME) -> PassVerdict:
        options = self.options
        comparison = (compare_mean if meaning is Meaning.MEAN else compare)(
            self.before,
            after,
            options.seed,
            ranges=self.ranges,
            tolerance=options.tolerance,
            max_bytes=options.memory_cap_bytes,
            regime=options.regime,
        )
        return verdict_of(name, comparison)


def with_stated_ranges(module: Module, stated: Mapping[str, IntegerRange]) -> dict[str, IntegerRange]:
    """The ranges that the module implies, with those that the caller states. Raises E0662 for an unknown name."""
    _check_names(module, stated)
    inferred = infer_ranges(module)
    ignoring = {name: replace(range_, ignored=inferred.get(name, range_).ignored) for name, range_ in stated.items()}
    return {**inferred, **ignoring}


def _check_names(module: Module, ranges: Mapping[str, IntegerRange]) -> None:
    """Raise E0662 for a range whose name is no integer input."""
    known = integer_arguments(module)
    for name in ranges:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f'did you mean "{near[0]}"?' if near else f"integer inputs: {', '.join(known) or 'none'}"
            raise StrettoError("E0662", f'--range names "{name}", which is no integer input', help=hint)


def verdict_of(name: str, comparison: Comparison) -> PassVerdict:
    """The verdict that a comparison gives."""
    differing = tuple(
        ResultError(number, result.name, result.error)
        for number, result in enumerate(comparison.results)
        if result.verdict is ResultVerdict.DIFFERENT
    )
    message: tuple[str, ...] = ()
    compared = len(comparison.results) - len(comparison.of(ResultVerdict.NOT_CHECKED))
    if not compared:
        message = (_SILENT if comparison.results else _NO_RESULTS,)
    breakage = Breakage.VALUES if differing else None
    return PassVerdict(name, breakage, comparison.error, compared, differing, message)


def raised_verdict(name: str, error: Exception) -> PassVerdict:
    """The verdict on a part of the compiler that raised `error`, which is no refusal of the user's model or plan."""
    cause = error.__cause__ if isinstance(error, PassFailure) and isinstance(error.__cause__, Exception) else error
    notes: list[str] = getattr(error, "__notes__", [])
    kind = cause.code if isinstance(cause, StrettoError) else type(cause).__name__
    return PassVerdict(name, Breakage.FAILED, math.inf, message=(raised_text(cause), *notes), code=kind)


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
