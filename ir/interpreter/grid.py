"""Ranks on a mesh: their coordinates, and the groups that communicate. Time is an axis without ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from ..pipelined_module import MICROBATCH
from ..placement import Mesh
from .errors import NO_MEANING, InterpreterError


@dataclass(frozen=True)
class Grid:
    """The ranks of a mesh, numbered row-major over its axes in declared order."""

    mesh: Mesh
    microbatches: int | None = None
    """The size of the axis "microbatch", where that is time; it is no axis of `mesh` then."""

    @cached_property
    def ranks(self) -> int:
        """How many there are; 1 for a mesh without axes."""
        return prod(size for _, size in self.mesh)

    @cached_property
    def _coordinates(self) -> list[dict[str, int]]:
        found = []
        for rank in range(self.ranks):
            rest, coordinates = rank, {}
            for axis, size in reversed(self.mesh):
                rest, coordinates[axis] = divmod(rest, size)
            found.append(coordinates)
        return found

    def has(self, axes: Sequence[str]) -> bool:
        """Whether every one is an axis of ranks."""
        return set(axes) <= {axis for axis, _ in self.mesh}

    def knows(self, axes: Sequence[str]) -> bool:
        """Whether every one is an axis of ranks, or time."""
        return self.has([axis for axis in axes if axis != MICROBATCH or self.microbatches is None])

    def size(self, axes: Sequence[str]) -> int:
        """How many ranks a group over `axes` has."""
        sizes = dict(self.mesh)
        return prod(sizes[axis] for axis in axes)

    def coordinate(self, rank: int, axes: Sequence[str], microbatch: int | None = None) -> int:
        """The rank's row-major number in its group over `axes`, in the order given, with `microbatch` where that is
        time. E0652 where it is none.

        >>> Grid((("dp", 2), ("tp", 3))).coordinate(4, ["tp", "dp"])
        3
        """
        sizes, at = dict(self.mesh), self._coordinates[rank]
        if self.microbatches is not None and MICROBATCH in axes:
            sizes, at = sizes | {MICROBATCH: self.microbatches}, at | {MICROBATCH: self._checked(microbatch)}
        number = 0
        for axis in axes:
            number = number * sizes[axis] + at[axis]
        return number

    def group(self, rank: int, axes: Sequence[str]) -> tuple[int, ...]:
        """The ranks that differ from this one only on `axes`, by their number in the group.

        >>> Grid((("dp", 2), ("tp", 3))).group(4, ["dp"])
        (1, 4)
        """
        rest = [axis for axis, _ in self.mesh if axis not in axes]
        here = self.coordinate(rank, rest)
        members = (r for r in range(self.ranks) if self.coordinate(r, rest) == here)
        return tuple(sorted(members, key=lambda r: self.coordinate(r, axes)))

    def at(self, axis: str, coordinate: int) -> tuple[int, ...]:
        """The ranks that have a coordinate on an axis."""
        return tuple(rank for rank in range(self.ranks) if self._coordinates[rank][axis] == coordinate)

    def without(self, axis: str) -> Grid:
        """The ranks that have one coordinate on an axis, numbered in their order."""
        return Grid(tuple(each for each in self.mesh if each[0] != axis), self.microbatches)

    def _checked(self, microbatch: int | None) -> int:
        if microbatch is None:
            raise InterpreterError(NO_MEANING, f'what is over "{MICROBATCH}" is in no call of one')
        if not 0 <= microbatch < (self.microbatches or 0):
            raise InterpreterError(NO_MEANING, f"there are {self.microbatches} microbatches, and {microbatch} is none")
        return microbatch
