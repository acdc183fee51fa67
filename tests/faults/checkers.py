"""Who finds a fault: the verifier, the interpreter of all ranks (and how), the order prover, a check of the program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, cached_property

from stretto.diagnostics import StrettoError
from stretto.ir.equivalence import random_inputs
from stretto.ir.equivalence.compare import Verdict, compare_tensors
from stretto.ir.equivalence.random_inputs import infer_ranges
from stretto.ir.equivalence.rounding import is_rounding, rounding
from stretto.ir.interpreter import Floats, run, run_ranks
from stretto.ir.interpreter.errors import DEADLOCK, MISMATCH, REPLICAS
from stretto.ir.interpreter.padding import Padding
from stretto.ir.module import Module, result_records
from stretto.ir.verifier import verify
from torch import Tensor

from .corpus import CAPTURED, Case, compiled

SEEDS = (0, 1, 2)
"""Of inputs: what one batch does not show, since the rows that would are ignored, another does."""
TOLERANCE = 1e-9


class Checker(StrEnum):
    """What can find a fault."""

    VERIFIER = "verifier"
    REFUSED = "interpreter: cannot run"
    DEADLOCK = "interpreter: ranks do not meet"
    REPLICAS = "interpreter: replicas differ"
    VALUES = "interpreter: values differ"
    SOUNDNESS = "program: malformed"
    PROVER = "order prover"
    CHECK = "check against one device"
    MEMORY = "frees behind the last use"


_BY_CODE = {DEADLOCK: Checker.DEADLOCK, MISMATCH: Checker.DEADLOCK, REPLICAS: Checker.REPLICAS}


@dataclass(frozen=True)
class Baseline:
    """What the unaltered module of a case gives, at one level."""

    module: Module
    inputs: list[Tensor]
    results: list[Tensor]

    @cached_property
    def moved(self) -> list[float]:
        """How far rounding alone moves each result."""
        return rounding(self.module, self.inputs, self.results, Padding.NAN, None)

    @property
    def names(self) -> list[str]:
        """What the results are called."""
        records = result_records(self.module.functions()["main"])
        return [f"{r.get('kind')} {r.get('name')}" for r in records]

    @property
    def unchecked(self) -> set[int]:
        """Results that say nothing, since they are zero but for rounding."""
        return {
            i
            for i, (result, far) in enumerate(zip(self.results, self.moved, strict=True))
            if is_rounding(result, result, far, TOLERANCE) or not result.any()
        }

    def differ(self, results: Sequence[Tensor]) -> list[str]:
        """The results that are not as they should be."""
        differing = []
        for i, (name, before, after) in enumerate(zip(self.names, self.results, results, strict=True)):
            different = compare_tensors(name, before, after, TOLERANCE).verdict is Verdict.DIFFERENT
            if different and not is_rounding(before, after, self.moved[i], TOLERANCE):
                differing.append(name)
        return differing


@cache
def baseline(case: Case, level: str, seed: int = SEEDS[0]) -> Baseline:
    """The unaltered module's results, made once."""
    compiled_case = compiled(case)
    module = compiled_case.module(level)
    kept = {name: value for name, value in compiled_case.program.weights.items() if not value.dtype.is_floating_point}
    inputs = random_inputs(module, seed, infer_ranges(compiled_case.module(CAPTURED)), kept)
    return Baseline(module, inputs, run(module, inputs, floats=Floats.FLOAT64))


def find(altered: Module, case: Case, level: str) -> Checker | None:
    """Who finds what is wrong with a module; None when nobody does."""
    return _find([altered], case, level)


def find_on_one_rank(altered: Module, rank: int, case: Case, level: str) -> Checker | None:
    """Who finds a fault that one rank alone has."""
    before = baseline(case, level).module
    return _find([altered if r == rank else before for r in range(ranks(before))], case, level)


def ranks(module: Module) -> int:
    """How many ranks a module is for."""
    count = 1
    for _, size in module.mesh:
        count *= size
    return count


def _find(modules: Sequence[Module], case: Case, level: str) -> Checker | None:
    try:
        for module in modules:
            if module is not baseline(case, level).module:
                verify(module)
    except StrettoError:
        return Checker.VERIFIER
    return next((detection for seed in SEEDS if (detection := _run(modules, baseline(case, level, seed)))), None)


def _run(modules: Sequence[Module], expected: Baseline) -> Checker | None:
    try:
        if len(modules) == 1:
            results = run(modules[0], expected.inputs, floats=Floats.FLOAT64)
        else:
            results = run_ranks(modules, expected.inputs, floats=Floats.FLOAT64)
    except StrettoError as error:
        return _BY_CODE.get(error.code, Checker.REFUSED)
    return Checker.VALUES if expected.differ(results) else None
