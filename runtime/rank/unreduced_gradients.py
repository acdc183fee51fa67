"""Unreduced gradients: each rank's own sums over backwards, while the reduction over ranks is delayed."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

from torch import Tensor

from ..program.records import Output


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
