"""One change of placement as collectives and local cuts.

Order: partial sums are reduced (scattered where the target shards them, else all-reduced), shards that the target does
not have are gathered (or exchanged for another dim by an all-to-all), what the target shards is cut, and a replicated
value that has to become one addend of a partial sum is zeroed on all ranks but the first.
Sums over microbatches are finished before anything is scattered over ranks, so that ranks reduce once.
Nested shards (two axes on one dim) are peeled and added innermost first where chunks nest evenly; otherwise the dim is
gathered whole and cut again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch

from ...ir.bindings import Value
from ...ir.collectives import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, REDUCE_SCATTER
from ...ir.pipelined_module import MICROBATCH
from ...ir.placement import Partial, Placement, Reduce, Shard
from ...ir.types import TensorType, from_mlir
from .emitter import LocalEmitter

Axes = tuple[str, ...]
T = TypeVar("T")


class Resharder:
    """A value on its way from one placement to another; `shape` is its global shape."""

    def __init__(self, emitter: LocalEmitter, value: Value, shape: tuple[int, ...], source: Placement) -> None:
        self.emitter = emitter
        self.value = value
        self.shape = shape
        self.at = source

    def to(self, target: Placement) -> Value:
        """Emit what brings the value to `target`."""
        self._reduce(target)
        self._exchange(target)
        for dim, axes in enumerate(target.dims):
            self._gather(dim, self._kept(dim, axes))
        for dim, axes in enumerate(target.dims):
            if self.at.dims[dim] != axes:
                self._cut(dim, axes)
        for axis, reduce in target.partial:
            if (axis, reduce) not in self.at.partial:
                self._become_addend(axis, reduce)
        return self.value

    def _reduce(self, target: Placement) -> None:
        together: dict[Reduce, list[str]] = {}
        over_time = self.at.on(MICROBATCH)
        if isinstance(over_time, Partial) and any(isinstance(target.on(axis), Shard) for axis, _ in self.at.partial):
            left = tuple(p for p in self.at.partial if p[0] != MICROBATCH)
            self._emit(ALL_REDUCE, replace(self.at, partial=left), [MICROBATCH], str(over_time.reduce))
        for axis, reduce in self.at.partial:
            wanted = target.on(axis)
            if wanted == Partial(reduce):
                continue
            if isinstance(wanted, Shard) and self._can_scatter(wanted.dim, axis, target):
                self._scatter(wanted.dim, axis, reduce)
            else:
                together.setdefault(reduce, []).append(axis)
        for reduce, axes in together.items():
            left = tuple(p for p in self.at.partial if p[0] not in axes)
            self._emit(ALL_REDUCE, replace(self.at, partial=left), axes, str(reduce))

    def _can_scatter(self, dim: int, axis: str, target: Placement) -> bool:
        held = self.at.dims[dim]
        nests = (*held, axis) == target.dims[dim][: len(held) + 1]
        return nests and (not held or self._is_aligned(dim, held, (*held, axis)))

    def _scatter(self, dim: int, axis: str, reduce: Reduce) -> None:
        held = self.at.dims[dim]
        if not held:
            self._pad(dim, self.emitter.chunk(self.shape[dim], (axis,)) * self.emitter.size((axis,)))
        partial = tuple(p for p in self.at.partial if p[0] != axis)
        after = Placement(_with(self.at.dims, dim, (*held, axis)), partial)
        self._emit(REDUCE_SCATTER, after, [axis], dim, str(reduce))

    def _exchange(self, target: Placement) -> None:
        """An all-to-all where one axis only changes which dim it shards, both evenly."""
        for source in range(len(self.shape)):
            for goal in range(len(self.shape)):
                held, wanted = self.at.dims[source], target.dims[goal]
                if source == goal or not held or self.at.dims[goal] != wanted[:-1] or held[-1:] != wanted[-1:]:
                    continue
                left = held[:-1]
                even = self.shape[source] % self.emitter.size(held) == 0
                if even and self.shape[goal] % self.emitter.size(wanted) == 0 and target.dims[source] == left:
                    dims = _with(_with(self.at.dims, source, left), goal, wanted)
                    self._emit(ALL_TO_ALL, replace(self.at, dims=dims), [held[-1]], goal, source)

    def _kept(self, dim: int, wanted: Axes) -> Axes:
        """How much of the dim's present sharding the target shares, as far as chunks nest evenly."""
        held = self.at.dims[dim]
        common = 0
        while common < min(len(held), len(wanted)) and held[common] == wanted[common]:
            common += 1
        kept = held[:common]
        nests = kept == held or self._is_aligned(dim, kept, held)
        return kept if kept and nests and (kept == wanted or self._is_aligned(dim, kept, wanted)) else ()

    def _gather(self, dim: int, kept: Axes) -> None:
        held = self.at.dims[dim]
        if held == kept:
            return
        removed = held[len(kept) :]
        after = replace(self.at, dims=_with(self.at.dims, dim, kept))
        extent = self.shape[dim] if not kept else self.emitter.chunk(self.shape[dim], kept)
        gathered = from_mlir(self.value.type).shape[dim] * self.emitter.size(removed)
        if gathered == extent:
            self._emit(ALL_GATHER, after, list(removed), dim)
            return
        shape = _with(from_mlir(self.value.type).shape, dim, gathered)
        padded = TensorType(from_mlir(self.value.type).dtype, shape)
        whole = self.emitter.op(ALL_GATHER, self.value, list(removed), dim, type=padded)
        type_ = self.emitter.placed(self.value, self.shape, after)
        self.value = self.emitter.op("aten.slice.Tensor", whole, dim, 0, extent, type=type_)
        self.at = after

    def _cut(self, dim: int, wanted: Axes) -> None:
        added = wanted[len(self.at.dims[dim]) :]
        after = replace(self.at, dims=_with(self.at.dims, dim, wanted))
        self._emit("comm.shard", after, list(added), dim, self.emitter.chunk(self.shape[dim], wanted))

    def _become_addend(self, axis: str, reduce: Reduce) -> None:
        if reduce is not Reduce.SUM:
            raise RuntimeError(f"a replicated value cannot become one operand of a {reduce}")
        coordinate = self.emitter.op("comm.offset", [axis], 1, type=TensorType(torch.int64, ()))
        first = self.emitter.op("aten.eq.Scalar", coordinate, 0, type=TensorType(torch.bool, ()))
        after = replace(self.at, partial=(*self.at.partial, (axis, reduce)))
        type_ = self.emitter.placed(self.value, self.shape, after)
        self.value = self.emitter.op("aten.where.ScalarOther", first, self.value, 0.0, type=type_)
        self.at = after

    def _pad(self, dim: int, extent: int) -> None:
        type_ = from_mlir(self.value.type)
        missing = extent - type_.shape[dim]
        if missing:
            pads = [0, 0] * (len(type_.shape) - 1 - dim) + [0, missing]
            padded = TensorType(type_.dtype, _with(type_.shape, dim, extent))
            self.value = self.emitter.op("aten.constant_pad_nd.default", self.value, pads, 0.0, type=padded)

    def _emit(self, name: str, after: Placement, *args: object) -> None:
        type_ = self.emitter.placed(self.value, self.shape, after)
        given = [list(a) if isinstance(a, tuple) else a for a in args]
        self.value = self.emitter.op(name, self.value, *given, type=type_)
        self.at = after

    def _is_aligned(self, dim: int, outer: Axes, inner: Axes) -> bool:
        """Whether the chunks over `inner` are the chunks over `outer` cut evenly."""
        extent = self.shape[dim]
        parts = self.emitter.size(inner[len(outer) :])
        return self.emitter.chunk(extent, outer) == self.emitter.chunk(extent, inner) * parts


def _with(items: tuple[T, ...], index: int, item: T) -> tuple[T, ...]:
    return (*items[:index], item, *items[index + 1 :])
