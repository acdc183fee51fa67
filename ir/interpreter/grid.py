"""Ranks on a mesh: their coordinates, and the groups that communicate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from ..placement import Mesh


@dataclass(frozen=True)
class Grid:
    """The ranks of a mesh, numbered row-major over its axes in declared order."""

    mesh: Mesh

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
        """Whether every one is an axis of the mesh."""
        return set(axes) <= {axis for axis, _ in self.mesh}

    def size(self, axes: Sequence[str]) -> int:
        """How many ranks a group over `axes` has."""
        sizes = dict(self.mesh)
        return prod(sizes[axis] for axis in axes)

    def coordinate(self, rank: int, axes: Sequence[str]) -> int:
        """The rank's row-major number in its group over `axes`, in the order given.

        >>> Grid((("dp", 2), ("tp", 3))).coordinate(4, ["tp", "dp"])
        3
        """
        sizes, at = dict(self.mesh), self._coordinates[rank]
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
