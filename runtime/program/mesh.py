"""The mesh of ranks: named axes, row-major coordinates, groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from math import prod


@dataclass(frozen=True)
class RankMesh:
    """The axes of a mesh in declared order with their sizes; rank numbers are row-major over them.

    >>> RankMesh((("dp", 2), ("tp", 3))).coordinates(4)
    {'dp': 1, 'tp': 1}
    """

    axes: tuple[tuple[str, int], ...]

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The size of each axis by name."""
        return dict(self.axes)

    @property
    def ranks(self) -> int:
        """How many ranks the mesh has; a mesh without axes has one."""
        return prod(size for _, size in self.axes)

    def coordinates(self, rank: int) -> dict[str, int]:
        """The position of `rank` on each axis."""
        return dict(zip(self.sizes, _unravel(self.axes, rank), strict=True))

    def rank_at(self, coordinates: Mapping[str, int]) -> int:
        """The rank at these coordinates, one for every axis."""
        rank = 0
        for axis, size in self.axes:
            rank = rank * size + coordinates[axis]
        return rank

    def size(self, axes: Sequence[str]) -> int:
        """How many ranks one group over `axes` has."""
        return prod(self.sizes[axis] for axis in axes)

    def coordinate(self, rank: int, axes: Sequence[str]) -> int:
        """The row-major position of `rank` in its group, the first axis listed being the outermost.

        >>> RankMesh((("dp", 2), ("tp", 3))).coordinate(4, ("tp", "dp"))
        3
        """
        return _coordinate(self.axes, rank, tuple(axes))

    def group(self, rank: int, axes: Sequence[str]) -> tuple[int, ...]:
        """The ranks that differ from `rank` on `axes` only, ordered by their coordinate over `axes` as listed."""
        own = self.coordinates(rank)
        positions = product(*(range(self.sizes[axis]) for axis in axes))
        return tuple(self.rank_at({**own, **dict(zip(axes, position, strict=True))}) for position in positions)

    def peer(self, rank: int, axis: str, coordinate: int) -> int:
        """The rank at `coordinate` on `axis` whose coordinates on all other axes are those of `rank`."""
        return self.rank_at({**self.coordinates(rank), axis: coordinate})

    def is_primary(self, rank: int, axes: Sequence[str], primary: Mapping[str, int] | None = None) -> bool:
        """Whether `rank` has the primary replica of a tensor that is sharded or partial over `axes`.

        That is the replica at coordinate 0 on every other axis, or at the coordinate that `primary` gives for an axis:
        in a pipeline not every stage has the tensor.
        """
        coordinates = zip(self.sizes, _unravel(self.axes, rank), strict=True)
        return all(axis in axes or coordinate == (primary or {}).get(axis, 0) for axis, coordinate in coordinates)


@lru_cache(maxsize=1 << 16)
def _unravel(axes: tuple[tuple[str, int], ...], rank: int) -> tuple[int, ...]:
    reversed_coordinates: list[int] = []
    for _, size in reversed(axes):
        rank, coordinate = divmod(rank, size)
        reversed_coordinates.append(coordinate)
    return tuple(reversed(reversed_coordinates))


@lru_cache(maxsize=1 << 16)
def _coordinate(mesh: tuple[tuple[str, int], ...], rank: int, axes: tuple[str, ...]) -> int:
    coordinates = dict(zip((axis for axis, _ in mesh), _unravel(mesh, rank), strict=True))
    sizes = dict(mesh)
    position = 0
    for axis in axes:
        position = position * sizes[axis] + coordinates[axis]
    return position
