"""Which kinds of ranks meet in which groups: one row for each distinct set-up, however many ranks there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..program.mesh import RankMesh

Ranks = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Groups:
    """All groups over some axes: `members[g]` in coordinate order; `kind[g]` tells groups of different classes apart.

    Two groups are of one kind when the classes of their members are the same, one by one.
    """

    axes: tuple[str, ...]
    members: Ranks
    """(groups, size)."""
    kind: Ranks
    """(groups,), from 0."""
    of_rank: Ranks
    """(ranks,): the group that a rank is in."""

    def first_of_each_kind(self) -> list[tuple[int, ...]]:
        """The members of one group of every kind."""
        _, at = np.unique(self.kind, return_index=True)
        return [tuple(int(rank) for rank in self.members[group]) for group in at]


def groups_over(mesh: RankMesh, axes: tuple[str, ...], class_of: Ranks) -> Groups:
    """The groups over `axes`; `class_of[rank]` numbers the classes."""
    names = [name for name, _ in mesh.axes]
    kept = [at for at, name in enumerate(names) if name not in axes]
    order = [*kept, *(names.index(axis) for axis in axes)]
    numbers = np.arange(mesh.ranks, dtype=np.int64).reshape([size for _, size in mesh.axes])
    members = numbers.transpose(order).reshape(-1, mesh.size(axes))
    _, kind = np.unique(class_of[members], axis=0, return_inverse=True)
    of_rank = np.empty(mesh.ranks, np.int64)
    of_rank[members] = np.arange(len(members), dtype=np.int64)[:, None]
    return Groups(axes, members, kind.reshape(-1).astype(np.int64), of_rank)


def profiles(class_of: Ranks, groups: Sequence[Groups]) -> tuple[list[int], Ranks]:
    """One rank for every distinct pair of a class and the kinds of group it is in, and for every rank that one."""
    columns = [class_of, *(each.kind[each.of_rank] for each in groups)]
    _, first, of_rank = np.unique(np.stack(columns, axis=1), axis=0, return_index=True, return_inverse=True)
    return [int(rank) for rank in first], first[of_rank.reshape(-1)].astype(np.int64)
