"""What became of mutants: who found each, or why nobody does; a table of it, and what was to be expected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from .checkers import Checker, find, find_on_one_rank
from .equivalence import Reason, reasons_of
from .mutants import Mutant
from .program_checkers import ProgramMutant, find_in_program, reasons_of_program

_USUAL = frozenset([Reason.SAME, Reason.UNUSED, Reason.ROUNDING, Reason.SHIFT])
_UNSEEN = _USUAL | {Reason.UNSELECTED, Reason.COMPARED, Reason.REDUCED, Reason.CENTERED}
MAY_BE: dict[str, frozenset[Reason]] = {
    **dict.fromkeys(
        (
            "wait left out", "waited twice", "never waited", "wait before its start", "wait missing", "future lost",
            "freed too early", "freed twice", "freed while a collective reads it", "used before it is made",
            "reused while a collective reads it", "result never made", "argument missing", "other function called",
            "never freed", "collective missing", "collective too many", "other group", "other reduction", "other shape",
            "other dtype", "other kind of collective", "collectives of a group swapped", "wrong dim, type as before",
        ),
        frozenset[Reason](),
    ),
    **dict.fromkeys(
        (
            "wrong offset of a part", "operands swapped", "wrong constant", "wrong slice", "operation left out",
            "neighbour in place of an operand", "labels for tokens", "mask left out", "rows of the batch used twice",
        ),
        _UNSEEN,
    ),
    "own part repeated in place of a gather": _USUAL | {Reason.UNSELECTED, Reason.CANCELS},
    "collectives of two groups swapped": frozenset([Reason.ORDERED]),
}  # fmt: skip
"""By kind of fault: why it may be none at some places. A dropped wait is always one; a swapped sum never."""


@dataclass(frozen=True)
class Outcome:
    """Who found a mutant; where nobody did, why it is equivalent to what it was made from."""

    mutant: Mutant | ProgramMutant
    checker: Checker | None
    reasons: frozenset[Reason] = frozenset()

    @property
    def is_due(self) -> bool:
        """Whether it was found, or is explained by what its kind admits."""
        admitted = MAY_BE.get(self.mutant.kind, _USUAL)
        return self.checker is not None or (bool(self.reasons) and self.reasons <= admitted)

    def __str__(self) -> str:
        why = ", ".join(sorted(self.reasons)) or "nothing explains it"
        return f"{self.mutant}: {self.checker or f'not found ({why})'}"


def outcome(mutant: Mutant | ProgramMutant) -> Outcome:
    """Put a mutant before the checkers."""
    if isinstance(mutant, ProgramMutant):
        checker = find_in_program(mutant)
        return Outcome(mutant, checker, frozenset() if checker else reasons_of_program(mutant))
    module = mutant.alteration.module
    if mutant.rank is None:
        checker = find(module, mutant.case, mutant.level)
    else:
        checker = find_on_one_rank(module, mutant.rank, mutant.case, mutant.level)
    return Outcome(mutant, checker, frozenset() if checker else reasons_of(mutant))


def table(outcomes: Iterable[Outcome]) -> str:
    """A line for each kind, and the totals by checker and by reason."""
    by_kind: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        verdict = str(outcome.checker) if outcome.checker else "none: " + ", ".join(sorted(outcome.reasons))
        by_kind.setdefault(outcome.mutant.kind, Counter())[verdict] += 1
    lines = [f"{kind:42}{counts.total():4}  {_counts(counts)}" for kind, counts in by_kind.items()]
    total = sum(by_kind.values(), Counter[str]())
    rows = [f"{count:5}  {verdict}" for verdict, count in total.most_common()]
    return "\n".join(["", *lines, "", f"{total.total():5}  of {len(by_kind)} kinds", *rows])


def _counts(counts: Counter[str]) -> str:
    return "; ".join(f"{verdict} {count}" for verdict, count in counts.most_common())
