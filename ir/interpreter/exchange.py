"""Match collectives between ranks: the n-th collective that each member of a group starts must be the same one.

A collective completes when every member of its group has started it. A start returns at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..collectives import COLLECTIVES, EXPERT_PRODUCTS, Collective, synchronous
from .code import Step
from .collectives import Option, Options, all_to_all_rows, run_collective
from .errors import (
    FAILED,
    MISMATCH,
    NO_MEANING,
    DeadlockError,
    InterpreterError,
    RowsAboveBound,
    RowsAboveBoundError,
    Stuck,
)
from .expert_products import expert_products
from .grid import Grid

GroupKey = tuple[frozenset[str], tuple[int, ...]]


@dataclass(frozen=True)
class Contribution:
    """One rank's operands and options of a collective."""

    rank: int
    step: Step
    collective: Collective
    tensors: tuple[Tensor, ...]
    """One, or those of a bucket, or one and the counts of its rows, or those of a product by expert."""
    options: Options

    def part(self, index: int) -> Options:
        """The options for one of the tensors: of the dims of a bucket, its own."""
        if not self.collective.coalesces:
            return self.options
        options = {key: value for key, value in self.options.items() if key != "dims"}
        dims = self.options.get("dims")
        return options | ({"dim": dims[index]} if isinstance(dims, list) else {})


@dataclass
class Rendezvous:
    """One collective of one group; it has `results` once all members have started it."""

    members: tuple[int, ...]
    contributions: dict[int, Contribution] = field(default_factory=dict)
    results: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """By member and number of the tensor in its bucket."""
    is_done: bool = False

    @property
    def missing(self) -> tuple[int, ...]:
        """The members that have not started it yet."""
        return tuple(r for r in sorted(self.members) if r not in self.contributions and not self.is_done)


@dataclass(eq=False)
class Future:
    """One rank's result of a collective, taken once; of a bucket, the result for one of its tensors."""

    rendezvous: Rendezvous
    rank: int
    step: Step
    """The operation that started it."""
    index: int = 0
    """The number of the tensor in its bucket."""
    is_taken: bool = False

    @property
    def is_ready(self) -> bool:
        return self.rendezvous.is_done

    @property
    def missing(self) -> tuple[int, ...]:
        """The ranks that it waits for."""
        return self.rendezvous.missing

    def take(self) -> Tensor:
        """The result; called once."""
        self.is_taken = True
        return self.rendezvous.results.pop((self.rank, self.index))


class Exchange:
    """The collectives in progress, of all groups of a mesh."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._started: Counter[tuple[GroupKey, int]] = Counter()
        self._open: dict[tuple[GroupKey, int], Rendezvous] = {}

    def start(self, rank: int, step: Step, tensors: Sequence[Tensor], options: Mapping[str, Option]) -> list[Future]:
        """Start the group's next collective; the last member completes it. A future for each of its tensors.

        Errors: E0656 for a mismatch.
        """
        axes = options["axes"]
        if not isinstance(axes, list) or not self._grid.has(axes):
            known = ", ".join(axis for axis, _ in self._grid.mesh) or "no axes"
            raise InterpreterError(NO_MEANING, f"{step} is over {axes}, but the mesh has {known}")
        members = self._grid.group(rank, axes)
        key = (frozenset(axes), tuple(sorted(members)))
        number = self._started[key, rank]
        self._started[key, rank] += 1
        rendezvous = self._open.setdefault((key, number), Rendezvous(members))
        collective = EXPERT_PRODUCTS.get(step.name) or COLLECTIVES[synchronous(step.name)]
        contribution = Contribution(rank, step, collective, tuple(tensors), dict(options))
        _check(rendezvous, contribution)
        rendezvous.contributions[rank] = contribution
        if len(rendezvous.contributions) == len(members):
            del self._open[key, number]
            _complete(rendezvous)
        results = 1 if contribution.collective.counts else len(tensors)
        return [Future(rendezvous, rank, step, index) for index in range(results)]


def _check(rendezvous: Rendezvous, contribution: Contribution) -> None:
    first = next(iter(rendezvous.contributions.values()), None)
    if first is None:
        return
    differences = _differences(first, contribution)
    if differences:
        message = f"ranks {first.rank} and {contribution.rank} start a collective differently: {'; '.join(differences)}"
        places = tuple(Stuck(o.rank, o.step.name, o.step.origin) for o in (first, contribution))
        raise DeadlockError(MISMATCH, message, places)


def _differences(first: Contribution, second: Contribution) -> list[str]:
    pairs: list[tuple[str, object, object]] = [("kind", first.collective.kind, second.collective.kind)]
    if first.collective == second.collective:
        names = sorted(set(first.options) | set(second.options))
        pairs += [(name, first.options.get(name), second.options.get(name)) for name in names]
    pairs.append(("number of tensors", len(first.tensors), len(second.tensors)))
    for mine, theirs in zip(first.tensors, second.tensors, strict=False):
        pairs.append(("shape", tuple(mine.shape), tuple(theirs.shape)))
        pairs.append(("dtype", mine.dtype, theirs.dtype))
    return [f"{name} {a} on rank {first.rank}, {b} on rank {second.rank}" for name, a, b in pairs if a != b]


def _complete(rendezvous: Rendezvous) -> None:
    contributions = [rendezvous.contributions[r] for r in rendezvous.members]
    first = contributions[0]
    kind = (first.collective.coalesces or first.collective.name).removeprefix("comm.")
    try:
        if first.collective.name in EXPERT_PRODUCTS:
            results = [expert_products(first.collective.name, [o.tensors for o in contributions], first.options)]
        elif first.collective.counts:
            tensors, sent, received = ([o.tensors[index] for o in contributions] for index in range(3))
            results = [all_to_all_rows(tensors, sent, received, _integer(first.options["bound"]))]
        else:
            results = [
                run_collective(kind, [o.tensors[index] for o in contributions], first.part(index))
                for index in range(len(first.tensors))
            ]
    except RowsAboveBound as error:
        raise RowsAboveBoundError(FAILED, f"{first.step} fails on ranks {rendezvous.members}: {error}") from None
    except (RuntimeError, ValueError, IndexError, KeyError) as error:
        raise InterpreterError(FAILED, f"{first.step} fails on ranks {rendezvous.members}: {error}") from None
    rendezvous.results = {
        (rank, index): part[position]
        for index, part in enumerate(results)
        for position, rank in enumerate(rendezvous.members)
    }
    rendezvous.contributions.clear()
    rendezvous.is_done = True


def _integer(value: Option) -> int:
    if not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number")
    return value
