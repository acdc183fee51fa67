"""Every fault planted in a module or a program is found by one of the checkers, or it is shown why it is none.

The default run plants one of each kind in a few cases; `pytest -m slow -s` plants over 500 in all of them and prints
who found them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from stretto.frontend.captured import Mode
from stretto.ir.equivalence import compare
from stretto.ir.equivalence.random_inputs import infer_ranges

from .checkers import Checker
from .corpus import CAPTURED, EXAMPLES, Case, cases, compiled, other_cases
from .mutants import MODULE_FAULTS, ONE_RANK_FAULTS, Mutant, mutants, mutants_on_one_rank
from .outcomes import Outcome, outcome, table
from .program_checkers import PROGRAM_FAULTS, RANK_FAULTS, ProgramMutant, program_mutants, rank_mutants

FEW = (
    Case("gpt", "dp_tp.plan", Mode.TRAIN),
    Case("llama", "tp_sequence.plan", Mode.TRAIN),
    Case("gpt2", "gpt2/dp_tp.plan", Mode.INFER),
)
SEED = 0
Maker = Callable[[str, int, int, Sequence[Case] | None], Iterator[Mutant | ProgramMutant]]
GROUPS: dict[str, tuple[Maker, tuple[str, ...], int]] = {
    "module": (mutants, tuple(MODULE_FAULTS), 9),
    "module of one rank": (mutants_on_one_rank, tuple(ONE_RANK_FAULTS), 6),
    "program": (program_mutants, tuple(PROGRAM_FAULTS), 6),
    "program of some ranks": (rank_mutants, tuple(RANK_FAULTS), 6),
}
"""How mutants are made, the kinds there are, and how many of each are planted in all cases."""


def undue(outcomes: Sequence[Outcome]) -> list[str]:
    return [str(result) for result in outcomes if not result.is_due]


@pytest.mark.parametrize(("group", "kind"), [(group, kind) for group in GROUPS for kind in GROUPS[group][1]])
def test_a_fault_is_found_or_explained(group: str, kind: str) -> None:
    make = GROUPS[group][0]
    outcomes = [outcome(mutant) for mutant in make(kind, 1, SEED, FEW)]
    assert len(outcomes) == 1
    assert not undue(outcomes)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_more_than_500_faults_in_all_plans_are_found_or_explained() -> None:
    outcomes = [
        outcome(mutant)
        for make, kinds, count in GROUPS.values()
        for kind in kinds
        for mutant in make(kind, count, SEED, None)
    ]
    print(table(outcomes))
    assert not undue(outcomes)
    assert len(outcomes) > 500
    assert {result.mutant.case for result in outcomes} == set(cases())
    assert sum(result.checker is None for result in outcomes) < 0.15 * len(outcomes)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_faults_in_plans_of_other_models_are_found_or_explained() -> None:
    others = other_cases()
    outcomes = [
        outcome(mutant)
        for make, kinds, _ in GROUPS.values()
        for kind in kinds
        for mutant in make(kind, 1, SEED, others)
    ]
    print(table(outcomes))
    assert not undue(outcomes)
    assert {result.mutant.case for result in outcomes} == set(others)


def test_there_are_cases_for_every_plan_of_the_examples() -> None:
    plans = {str(path.relative_to(EXAMPLES / "plans")) for path in (EXAMPLES / "plans").rglob("*.plan")}
    assert {case.plan for case in (*cases(), *other_cases())} == plans


def test_comparing_two_modules_finds_what_the_checkers_here_find() -> None:
    for kind in ("gradients swapped", "dropped reduction", "wrong reduction"):
        [mutant] = mutants(kind, 1, SEED, FEW[:1])
        before = compiled(mutant.case)
        detected = outcome(mutant).checker
        if detected is Checker.VALUES:
            ranges = infer_ranges(before.module(CAPTURED))
            assert not compare(before.module(mutant.level), mutant.alteration.module, ranges=ranges).is_equal
