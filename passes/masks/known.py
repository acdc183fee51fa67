"""What is known of a tensor's elements without running anything: numbers that grow with the index, or cases.

`arange(8)[:, None]` is a ramp. `i >= j`, of two ramps, has two cases: true where i - j is 0 or more, false elsewhere.
All that is said of cases is where a value *may* be, so that operations on them stay right where they are not exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor, gcd, inf

Scalar = bool | int | float

UNKNOWN = None
"""In cases: any value."""

MOST_CASES = 8
"""A tensor of more cases is not followed."""


@dataclass(frozen=True)
class Interval:
    """Whole numbers from `lowest` to `highest`, both included; infinite where there is no end."""

    lowest: float = -inf
    highest: float = inf

    def __bool__(self) -> bool:
        return self.lowest <= self.highest

    def __and__(self, other: Interval) -> Interval:
        return Interval(max(self.lowest, other.lowest), min(self.highest, other.highest))

    def __or__(self, other: Interval) -> Interval:
        """The smallest interval that has both."""
        return Interval(min(self.lowest, other.lowest), max(self.highest, other.highest))


EVERYWHERE = Interval()


@dataclass(frozen=True)
class Ramp:
    """Integers: `constant` plus, for each dim, its step times the index. Dims of extent 1 have step 0."""

    steps: tuple[int, ...]
    constant: int


@dataclass(frozen=True)
class Cases:
    """Which values an element may have, by a position: the sum over dims of `steps` times the index.

    Steps have no common divisor, and the first that is not 0 is positive; where all are 0 a case is everywhere.
    """

    steps: tuple[int, ...]
    where: tuple[tuple[Scalar | None, Interval], ...]
    """Each value, with the positions at which it may be."""

    @property
    def value(self) -> Scalar | None:
        """The one value that all elements have; None if there is none."""
        return self.where[0][0] if len(self.where) == 1 else None

    @property
    def dims(self) -> int:
        """How many dims the position depends on."""
        return sum(step != 0 for step in self.steps)

    def moved(self, steps: tuple[int, ...], constant: int) -> Cases:
        """The cases where the position is that of other dims: `constant` plus the sum of `steps` times the index."""
        factor, direction = _normal(steps)
        if not factor:
            return cases(steps, [(v, EVERYWHERE) for v, i in self.where if i & Interval(constant, constant)])
        return cases(direction, [(v, _divided(i, constant, factor)) for v, i in self.where])


Known = Ramp | Cases


def cases(steps: tuple[int, ...], where: Iterable[tuple[Scalar | None, Interval]]) -> Cases:
    """Cases, those of the same value joined; 1 and True are the same value. Without any: some value, everywhere."""
    joined: dict[Scalar | None, Interval] = {}
    for value, interval in where:
        if interval:
            joined[value] = joined[value] | interval if value in joined else interval
    if not joined or len(joined) > MOST_CASES:
        joined = {UNKNOWN: EVERYWHERE}
    if all(interval == EVERYWHERE for interval in joined.values()):
        steps = (0,) * len(steps)
    return Cases(steps, tuple(joined.items()))


def everywhere(value: Scalar | None, rank: int) -> Known:
    """A tensor of one value; a ramp if it is an integer."""
    if isinstance(value, int) and not isinstance(value, bool):
        return Ramp((0,) * rank, value)
    return cases((0,) * rank, [(value, EVERYWHERE)])


def either(one: Known | None, other: Known | None) -> Known | None:
    """What is known of a tensor that is one or the other."""
    if one == other:
        return one
    if not isinstance(one, Cases) or not isinstance(other, Cases) or one.steps != other.steps:
        return None
    return cases(one.steps, [*one.where, *other.where])


def signs(ramp: Ramp) -> tuple[tuple[int, ...], dict[str, Interval]]:
    """The position that a ramp depends on, and where it is below, at and above 0."""
    factor, direction = _normal(ramp.steps)
    if not factor:
        name = "below" if ramp.constant < 0 else "above" if ramp.constant > 0 else "at"
        return ramp.steps, {name: EVERYWHERE}
    below, at, above = (
        _divided(interval, ramp.constant, factor)
        for interval in (Interval(highest=-1), Interval(0, 0), Interval(lowest=1))
    )
    return direction, {name: i for name, i in (("below", below), ("at", at), ("above", above)) if i}


def _normal(steps: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """A factor, and steps of no common divisor of which the first is positive, whose product the steps are."""
    factor = gcd(*steps)
    if next((step for step in steps if step), 0) < 0:
        factor = -factor
    return factor, tuple(step // factor for step in steps) if factor else steps


def _divided(interval: Interval, constant: int, factor: int) -> Interval:
    """The x for which constant + factor * x is in the interval."""
    ends = [(end - constant) / factor for end in (interval.lowest, interval.highest)]
    low, high = min(ends), max(ends)
    return Interval(low if low == -inf else ceil(low), high if high == inf else floor(high))
