"""Mutants: modules with one fault each, at places drawn by a seed from every case and level."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from stretto.ir.bindings import Operation
from stretto.ir.interpreter.code import decoded
from stretto.ir.module import Module, name_of

from .collective_faults import COLLECTIVE_FAULTS
from .corpus import LEVELS, Case, cases, compiled
from .editing import Changed, sites
from .value_faults import VALUE_FAULTS

MODULE_FAULTS = COLLECTIVE_FAULTS | VALUE_FAULTS
ONE_RANK_FAULTS = {
    kind: MODULE_FAULTS[kind]
    for kind in (
        "dropped reduction", "own part repeated in place of a gather", "wrong axis", "wrong reduction",
        "reduced twice", "wrong dim", "doubled value", "part of the next rank", "neighbour in place of an operand",
    )
}  # fmt: skip
"""Kinds that are planted in the module of one rank as well."""


@dataclass(frozen=True)
class Alteration:
    """A module with a fault, and what was changed in it."""

    module: Module
    function: str
    """Where the fault is."""
    index: int | None
    """Which of the function's steps was altered, or has others in its place; None for what it returns."""
    steps: dict[str, list[Operation]]
    """The operations before the fault, by function; the altered one may be gone."""
    changed: Changed
    """What stands for the operation's results."""

    def original(self, before: Module) -> str:
        """The text of the altered operation as it is in the module without the fault."""
        steps = decoded(before.functions()[self.function])
        return str(steps[self.index])[:200] if self.index is not None else "what it returns"


@dataclass(frozen=True)
class Mutant:
    """An alteration of a module of a case."""

    kind: str
    case: Case
    level: str
    alteration: Alteration
    rank: int | None = None
    """The one rank that has it; None for all."""

    def __str__(self) -> str:
        rank = f" on rank {self.rank}" if self.rank is not None else ""
        place = f"{self.case} after {self.level}, in {self.alteration.function}"
        return f"{self.kind}{rank}: {place}: {self.alteration.original(compiled(self.case).module(self.level))}"


def alter(module: Module, kind: str, random: Random) -> Alteration | None:
    """The module, altered at one of the places where the kind of fault can be; None where there is none."""
    steps = {name: decoded(function) for name, function in module.functions().items()}
    indices = {op: i for step in steps.values() for i, op in enumerate(step)}
    for site in sites(module, random):
        index = indices.get(site.op)
        changed = MODULE_FAULTS[kind](site)
        if changed is not None:
            return Alteration(module, name_of(site.function), index, steps, changed)
    return None


def mutants(kind: str, count: int, seed: int, among: Sequence[Case] | None = None) -> Iterator[Mutant]:
    """Mutants of a kind; each case and level once, in a random order, before one comes again."""
    yield from _mutants(kind, count, Random(f"{kind} {seed}"), among or cases(), one_rank=False)


def mutants_on_one_rank(kind: str, count: int, seed: int, among: Sequence[Case] | None = None) -> Iterator[Mutant]:
    """As `mutants`, where one rank alone has the fault."""
    yield from _mutants(kind, count, Random(f"one rank {kind} {seed}"), among or cases(), one_rank=True)


def _mutants(kind: str, count: int, random: Random, among: Sequence[Case], *, one_rank: bool) -> Iterator[Mutant]:
    places = [(case, level) for case in among for level in LEVELS]
    random.shuffle(places)
    while count and places:
        for case, level in list(places):
            module = compiled(case).module(level)
            altered = alter(module, kind, random)
            if altered is None:
                places.remove((case, level))
                continue
            ranks = 1
            for _, size in module.mesh:
                ranks *= size
            yield Mutant(kind, case, level, altered, random.randrange(ranks) if one_rank else None)
            count -= 1
            if not count:
                return
