"""Programs with faults, and who finds them: reading, the order prover, or a check against the model on one device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from stretto.diagnostics import StrettoError
from stretto.runtime.checks.program_check import check
from stretto.runtime.errors import ProgramError
from stretto.runtime.lanes.late_frees import late_frees
from stretto.runtime.program.program import Program
from stretto.runtime.prover import RankClass, prove_ranks

from .checkers import Checker
from .corpus import Case, cases, compiled
from .equivalence import Reason
from .orders import comes_to_its_end
from .program_editing import Place
from .program_faults import PROGRAM_FAULTS, ProgramFault
from .rank_faults import RANK_FAULTS


@dataclass(frozen=True)
class ProgramMutant:
    """A program with a fault in one function, which all ranks run or only some."""

    kind: str
    case: Case
    function: str
    program: Program
    ranks: tuple[int, ...] | None = None

    def __str__(self) -> str:
        where = f" on ranks {self.ranks}" if self.ranks is not None else ""
        return f'{self.kind}{where}: {self.case}, in "{self.function}"'


def find_in_program(mutant: ProgramMutant) -> Checker | None:
    """Who finds the fault; at last, whether it keeps a tensor for too long."""
    try:
        if not prove_ranks(rank_classes(mutant)).safe:
            return Checker.PROVER
    except ProgramError:
        return Checker.SOUNDNESS
    if mutant.ranks is not None:
        return None
    try:
        if not check(mutant.program).passed:
            return Checker.CHECK
    except StrettoError:
        return Checker.CHECK
    return Checker.MEMORY if late_frees(mutant.program) else None


def reasons_of_program(mutant: ProgramMutant) -> frozenset[Reason]:
    """Why a fault that nobody finds changes nothing; empty where it is not explained."""
    if mutant.ranks is not None:
        return frozenset([Reason.ORDERED]) if comes_to_its_end(rank_classes(mutant)) else frozenset()
    return frozenset()


def rank_classes(mutant: ProgramMutant) -> list[RankClass]:
    """Who runs the program with the fault, and who the one without."""
    everyone = range(mutant.program.mesh.ranks)
    have = tuple(everyone) if mutant.ranks is None else mutant.ranks
    others = tuple(r for r in everyone if r not in have)
    return [RankClass(mutant.program, have), *([RankClass(compiled(mutant.case).program, others)] if others else [])]


def program_mutants(kind: str, count: int, seed: int, among: Sequence[Case] | None = None) -> Iterator[ProgramMutant]:
    """Mutants of a kind; each case once, in a random order, before one comes again."""
    random = Random(f"program {kind} {seed}")
    for case, function, program in _altered(PROGRAM_FAULTS[kind], count, random, among or cases()):
        yield ProgramMutant(kind, case, function, program)


def rank_mutants(kind: str, count: int, seed: int, among: Sequence[Case] | None = None) -> Iterator[ProgramMutant]:
    """Mutants that one rank has, or, on a mesh of two axes, now and then the first and the last."""
    random = Random(f"ranks {kind} {seed}")
    for case, function, program in _altered(RANK_FAULTS[kind], count, random, among or cases()):
        last = program.mesh.ranks - 1
        ranks = (0, last) if last > 1 and random.random() < 0.5 else (random.randint(0, last),)
        yield ProgramMutant(kind, case, function, program, ranks)


def _altered(
    fault: ProgramFault, count: int, random: Random, among: Sequence[Case]
) -> Iterator[tuple[Case, str, Program]]:
    left = list(among)
    random.shuffle(left)
    while count and left:
        for case in list(left):
            program = compiled(case).program
            names = list(program.functions)
            random.shuffle(names)
            candidates = ((name, fault(Place(program, name, random))) for name in names)
            chosen = next(((name, altered) for name, altered in candidates if altered is not None), None)
            if chosen is None:
                left.remove(case)
                continue
            yield case, *chosen
            count -= 1
            if not count:
                return
