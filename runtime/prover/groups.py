"""Groups of ranks, and which of them are of the same kind, so that the proof needs one group of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..program.mesh import RankMesh

Ranks = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class GroupSet:
    """All groups over some axes.

    Two groups are of the same kind if their members have the same classes, in coordinate order.
    """

    axes: tuple[str, ...]
    members: Ranks
    """(groups, size): the ranks of each group in coordinate order."""
    kind: Ranks
    """(groups,): the kind of each group, from 0."""
    group_of_rank: Ranks
    """(ranks,): the group of each rank."""

    def first_of_each_kind(self) -> list[tuple[int, ...]]:
        """The members of one group of every kind."""
        _, first_groups = np.unique(self.kind, return_index=True)
        return [tuple(int(rank) for rank in self.members[group]) for group in first_groups]


def groups_over(mesh: RankMesh, axes: tuple[str, ...], class_of: Ranks) -> GroupSet:
    """The groups over `axes`; `class_of[rank]` is the class of a rank."""
    names = [name for name, _ in mesh.axes]
    kept = [index for index, name in enumerate(names) if name not in axes]
    order = [*kept, *(names.index(axis) for axis in axes)]
    numbers = np.arange(mesh.ranks, dtype=np.int64).reshape([size for _, size in mesh.axes])
    members = numbers.transpose(order).reshape(-1, mesh.size(axes))
    _, kind = np.unique(class_of[members], axis=0, return_inverse=True)
    of_rank = np.empty(mesh.ranks, np.int64)
    of_rank[members] = np.arange(len(members), dtype=np.int64)[:, None]
    return GroupSet(axes, members, kind.reshape(-1).astype(np.int64), of_rank)


def profiles(class_of: Ranks, groups: Sequence[GroupSet]) -> tuple[list[int], Ranks]:
    """One representative rank of each profile, and (ranks,) the representative of each rank.

    Two ranks have the same profile if they have the same class and are in groups of the same kinds.
    """
    columns = [class_of, *(group_set.kind[group_set.group_of_rank] for group_set in groups)]
    _, first, of_rank = np.unique(np.stack(columns, axis=1), axis=0, return_index=True, return_inverse=True)
    return [int(rank) for rank in first], first[of_rank.reshape(-1)].astype(np.int64)
