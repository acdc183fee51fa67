"""Collectives matched for real: per group, the n-th that each member starts is one and the same, or it is an error.

A collective is done when every member of its group has started it. Nothing else blocks: a start returns at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..collectives import COLLECTIVES, synchronous
from .code import Step
from .collectives import Option, Options, perform
from .errors import FAILED, MISMATCH, NO_MEANING, DeadlockError, InterpreterError, Stuck
from .grid import Grid

GroupKey = tuple[frozenset[str], tuple[int, ...]]


@dataclass(frozen=True)
class Offer:
    """What one rank brings to a collective."""

    rank: int
    step: Step
    kind: str
    tensor: Tensor
    options: Options


@dataclass
class Meeting:
    """One collective of one group; `results` is filled once all members have come."""

    members: tuple[int, ...]
    offers: dict[int, Offer] = field(default_factory=dict)
    results: dict[int, Tensor] = field(default_factory=dict)
    is_done: bool = False

    @property
    def missing(self) -> tuple[int, ...]:
        """The members that have not started it."""
        return tuple(r for r in sorted(self.members) if r not in self.offers and not self.is_done)


@dataclass(eq=False)
class Future:
    """What one rank gets of a meeting, once."""

    meeting: Meeting
    rank: int
    step: Step
    """Where it was started."""
    is_taken: bool = False

    @property
    def is_ready(self) -> bool:
        return self.meeting.is_done

    @property
    def missing(self) -> tuple[int, ...]:
        """The ranks that must come before it is ready."""
        return self.meeting.missing

    def take(self) -> Tensor:
        """The result; called once."""
        self.is_taken = True
        return self.meeting.results.pop(self.rank)


class Exchange:
    """The meetings of all groups of a mesh."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._started: Counter[tuple[GroupKey, int]] = Counter()
        self._open: dict[tuple[GroupKey, int], Meeting] = {}

    def start(self, rank: int, step: Step, tensor: Tensor, options: Mapping[str, Option]) -> Future:
        """Join the group's next meeting; the last to come performs it. Errors: E0656 for ranks that differ."""
        kind = COLLECTIVES[synchronous(step.name)].kind
        axes = options["axes"]
        if not isinstance(axes, list) or not self._grid.has(axes):
            known = ", ".join(axis for axis, _ in self._grid.mesh) or "no axes"
            raise InterpreterError(NO_MEANING, f"{step} is over {axes}, but the mesh has {known}")
        members = self._grid.group(rank, axes)
        key = (frozenset(axes), tuple(sorted(members)))
        number = self._started[key, rank]
        self._started[key, rank] += 1
        meeting = self._open.setdefault((key, number), Meeting(members))
        offer = Offer(rank, step, kind, tensor, dict(options))
        _check(meeting, offer)
        meeting.offers[rank] = offer
        if len(meeting.offers) == len(members):
            del self._open[key, number]
            _perform(meeting)
        return Future(meeting, rank, step)


def _check(meeting: Meeting, offer: Offer) -> None:
    first = next(iter(meeting.offers.values()), None)
    if first is None:
        return
    differences = _differences(first, offer)
    if differences:
        message = f"ranks {first.rank} and {offer.rank} meet in a collective and differ: {'; '.join(differences)}"
        places = tuple(Stuck(o.rank, o.step.name, o.step.origin) for o in (first, offer))
        raise DeadlockError(MISMATCH, message, places)


def _differences(first: Offer, second: Offer) -> list[str]:
    pairs: list[tuple[str, object, object]] = [("kind", first.kind, second.kind)]
    if first.kind == second.kind:
        names = sorted(set(first.options) | set(second.options))
        pairs += [(name, first.options.get(name), second.options.get(name)) for name in names]
    pairs.append(("shape", tuple(first.tensor.shape), tuple(second.tensor.shape)))
    pairs.append(("dtype", first.tensor.dtype, second.tensor.dtype))
    return [f"{name} {a} on rank {first.rank}, {b} on rank {second.rank}" for name, a, b in pairs if a != b]


def _perform(meeting: Meeting) -> None:
    offers = [meeting.offers[r] for r in meeting.members]
    try:
        results = perform(offers[0].kind, [o.tensor for o in offers], offers[0].options)
    except (RuntimeError, ValueError, IndexError, KeyError) as error:
        raise InterpreterError(FAILED, f"{offers[0].step} fails on ranks {meeting.members}: {error}") from None
    meeting.results = dict(zip(meeting.members, results, strict=True))
    meeting.offers.clear()
    meeting.is_done = True
