"""Which ranks form a group: row-major coordinates on a mesh of named axes."""

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

    def rank_at(self, place: dict[str, int]) -> int:
        """The rank at one coordinate on every axis."""
        rank = 0
        for name, size in self.axes:
            rank = rank * size + place[name]
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
        place = self.coordinates(rank)
        spots = product(*(range(self.sizes[axis]) for axis in axes))
        return tuple(self.rank_at({**place, **dict(zip(axes, spot, strict=True))}) for spot in spots)

    def peer(self, rank: int, axis: str, coordinate: int) -> int:
        """The rank at `coordinate` on `axis` that stands where `rank` does on all other axes."""
        return self.rank_at({**self.coordinates(rank), axis: coordinate})

    def is_first(self, rank: int, axes: Sequence[str], first: Mapping[str, int] | None = None) -> bool:
        """Whether `rank` stands at 0 on every axis that is NOT in `axes`: the one that speaks for its replicas.

        Where not all coordinates on an axis have replicas, `first` says which of them speaks.
        """
        at = zip(self.sizes, _unravel(self.axes, rank), strict=True)
        return all(axis in axes or place == (first or {}).get(axis, 0) for axis, place in at)


@lru_cache(maxsize=1 << 16)
def _unravel(axes: tuple[tuple[str, int], ...], rank: int) -> tuple[int, ...]:
    place: list[int] = []
    for _, size in reversed(axes):
        rank, at = divmod(rank, size)
        place.append(at)
    return tuple(reversed(place))


@lru_cache(maxsize=1 << 16)
def _coordinate(mesh: tuple[tuple[str, int], ...], rank: int, axes: tuple[str, ...]) -> int:
    places = {name: (at, size) for (name, size), at in zip(mesh, _unravel(mesh, rank), strict=True)}
    position = 0
    for axis in axes:
        at, size = places[axis]
        position = position * size + at
    return position
