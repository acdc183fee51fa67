"""Gradients that no reduction has joined yet: what each rank has added up while a reduction is delayed."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

from torch import Tensor

from ..program.records import Output


class Addends:
    """For each gradient that a program leaves as addends: the sum, on each rank of this process, of its own.

    Programs of one model and plan may share it: a gradient is cut and added over the same axes in all of them.
    """

    def __init__(self) -> None:
        self._results: dict[str, Output] = {}
        self._sums: dict[str, dict[int, Tensor]] = {}

    def __bool__(self) -> bool:
        return bool(self._sums)

    def add(self, result: Output, rank: int, addend: Tensor) -> None:
        """Add what `rank` has computed of `result`; the tensor is not written to, and may be kept."""
        self._results[result.name] = result
        sums = self._sums.setdefault(result.name, {})
        sums[rank] = sums[rank] + addend if rank in sums else addend

    def take(self, wanted: Container[str] | None = None) -> Iterator[tuple[Output, Mapping[int, Tensor]]]:
        """The gradients that are wanted (None: all) with the sums of the ranks, in the order in which they came.

        They do not wait any longer; the others do.
        """
        names = [name for name in self._sums if wanted is None or name in wanted]
        for name in names:
            yield self._results.pop(name), self._sums.pop(name)

    def clear(self) -> None:
        """Forget all that waits."""
        self._results.clear()
        self._sums.clear()
