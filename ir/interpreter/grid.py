"""The ranks of a mesh: coordinates and groups. The microbatch axis may be an axis without ranks."""

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
    """The size of a microbatch axis without ranks, which is then not in `mesh`."""

    @cached_property
    def ranks(self) -> int:
        """The number of ranks; 1 for a mesh without axes."""
        return prod(size for _, size in self.mesh)

    @cached_property
    def _coordinates(self) -> list[dict[str, int]]:
        by_rank = []
        for rank in range(self.ranks):
            remainder, coordinates = rank, {}
            for axis, size in reversed(self.mesh):
                remainder, coordinates[axis] = divmod(remainder, size)
            by_rank.append(coordinates)
        return by_rank

    def has(self, axes: Sequence[str]) -> bool:
        """Whether all are axes with ranks."""
        return set(axes) <= {axis for axis, _ in self.mesh}

    def knows(self, axes: Sequence[str]) -> bool:
        """Whether all are axes with ranks, or the microbatch axis."""
        return self.has([axis for axis in axes if axis != MICROBATCH or self.microbatches is None])

    def size(self, axes: Sequence[str]) -> int:
        """The number of ranks of a group over `axes`."""
        sizes = dict(self.mesh)
        return prod(sizes[axis] for axis in axes)

    def coordinate(self, rank: int, axes: Sequence[str], microbatch: int | None = None) -> int:
        """The rank's row-major number in its group over `axes`, in the given order.

        `microbatch` is the coordinate on a microbatch axis without ranks; E0652 if it is needed and missing.

        >>> Grid((("dp", 2), ("tp", 3))).coordinate(4, ["tp", "dp"])
        3
        """
        sizes, coordinates = dict(self.mesh), self._coordinates[rank]
        if self.microbatches is not None and MICROBATCH in axes:
            sizes, coordinates = (
                sizes | {MICROBATCH: self.microbatches},
                coordinates | {MICROBATCH: self._checked(microbatch)},
            )
        number = 0
        for axis in axes:
            number = number * sizes[axis] + coordinates[axis]
        return number

    def group(self, rank: int, axes: Sequence[str]) -> tuple[int, ...]:
        """The ranks that differ from this one only on `axes`, in group order.

        >>> Grid((("dp", 2), ("tp", 3))).group(4, ["dp"])
        (1, 4)
        """
        other_axes = [axis for axis, _ in self.mesh if axis not in axes]
        own = self.coordinate(rank, other_axes)
        members = (r for r in range(self.ranks) if self.coordinate(r, other_axes) == own)
        return tuple(sorted(members, key=lambda r: self.coordinate(r, axes)))

    def at(self, axis: str, coordinate: int) -> tuple[int, ...]:
        """The ranks with a coordinate on an axis."""
        return tuple(rank for rank in range(self.ranks) if self._coordinates[rank][axis] == coordinate)

    def without(self, axis: str) -> Grid:
        """The grid without an axis: the ranks with one coordinate on it."""
        return Grid(tuple(axis_size for axis_size in self.mesh if axis_size[0] != axis), self.microbatches)

    def _checked(self, microbatch: int | None) -> int:
        if microbatch is None:
            raise InterpreterError(
                NO_MEANING, f'an operation over "{MICROBATCH}" is outside of a call for a microbatch'
            )
        if not 0 <= microbatch < (self.microbatches or 0):
            raise InterpreterError(
                NO_MEANING, f"microbatch {microbatch} is out of range: there are {self.microbatches}"
            )
        return microbatch
