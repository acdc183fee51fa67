"""Unreduced gradients: each rank's own sums over backwards, while the reduction over ranks is delayed."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..program.mesh import RankMesh
from ..program.records import Output, Shard


class UnreducedGradients:
    """The accumulated unreduced gradients of the ranks of this process.

    Programs of one model and plan may share it: a gradient is sharded and partial over the same axes in all of them.
    """

    def __init__(self) -> None:
        self._outputs: dict[str, Output] = {}
        self._sums: dict[str, dict[int, Tensor]] = {}
        """By name of the gradient and by rank."""

    def __bool__(self) -> bool:
        return bool(self._sums)

    def add(self, output: Output, rank: int, gradient: Tensor) -> None:
        """Add the gradient that `rank` has computed. The tensor is not written to, and may be kept."""
        self._outputs[output.name] = output
        sums = self._sums.setdefault(output.name, {})
        sums[rank] = sums[rank] + gradient if rank in sums else gradient

    def take(self, names: Container[str] | None = None) -> Iterator[tuple[Output, Mapping[int, Tensor]]]:
        """Remove the gradients in `names` (None: all) and yield them with the sums by rank, in order of arrival."""
        for name in [name for name in self._sums if names is None or name in names]:
            yield self._outputs.pop(name), self._sums.pop(name)

    def clear(self) -> None:
        """Drop all gradients."""
        self._outputs.clear()
        self._sums.clear()


@dataclass(frozen=True)
class Reduction:
    """How an unreduced gradient becomes its rank's part of the sum: reduce-scatters, then an all-reduce."""

    scatters: tuple[tuple[tuple[str, ...], int], ...]
    """The axes and the dim of each."""
    all_reduced: tuple[str, ...]
    """The axes that are left."""

    @staticmethod
    def of(output: Output, shards: Sequence[Shard], mesh: RankMesh) -> Reduction:
        """That of a gradient whose sum is to have `shards`.

        It is reduce-scattered where axes that shard the sum nest evenly inside those that shard the gradient already;
        else the gradient is all-reduced, and has its own shards.
        """
        present = {shard.dim: shard for shard in output.shards}
        scatters: list[tuple[tuple[str, ...], int]] = []
        for shard in shards:
            outer = present.pop(shard.dim).axes if shard.dim in present else ()
            inner = shard.axes[len(outer) :]
            is_even = shard.chunk * mesh.size(shard.axes) == shard.extent
            is_nested = shard.axes[: len(outer)] == outer and {*inner} <= {*output.unreduced_over}
            if not (is_nested and is_even) or shard.blocks:
                return Reduction((), output.unreduced_over)
            scatters += [(inner, shard.dim)] if inner else []
        scattered = [] if present else [axis for axes, _ in scatters for axis in axes]
        rest = tuple(axis for axis in output.unreduced_over if axis not in scattered)
        return Reduction(() if present else tuple(scatters), rest)
