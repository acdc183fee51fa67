"""One reshard as collectives and local slices.

In this order: partial sums are reduce-scattered where the target shards them, else all-reduced; shards that the target
does not have are gathered, or moved to another dim by an all-to-all; dims that the target shards are sliced; a
replicated value that the target has partial is zeroed on all ranks but the first.
A sum over microbatches that the target does not keep is reduced before any reduce-scatter over ranks, so that ranks
reduce once.
Nested shards (two axes on one dim) are gathered and sliced innermost first where chunks nest evenly; otherwise the dim
is gathered whole and sliced again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch

from ...ir.bindings import Value
from ...ir.collectives import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, REDUCE_SCATTER
from ...ir.operations import set_use
from ...ir.pipelined_module import MICROBATCH
from ...ir.placement import Partial, Placement, Reduce, Shard
from ...ir.types import TensorType, from_mlir
from .blocks import by_block, by_rank, from_blocks, to_blocks
from .emitter import LocalEmitter

Axes = tuple[str, ...]
T = TypeVar("T")


class Resharder:
    """Reshards one value step by step; `shape` is its global shape, `placement` the present one.

    `use` numbers the use that a stored parameter is gathered for; the collectives get it as an attribute.
    """

    def __init__(
        self,
        emitter: LocalEmitter,
        value: Value,
        shape: tuple[int, ...],
        source: Placement,
        use: int | None = None,
    ) -> None:
        self.emitter = emitter
        self.value = value
        self.shape = shape
        self.placement = source
        self.use = use

    def to(self, target: Placement) -> Value:
        """Emit the operations that reshard the value to `target`.

        A dim that is cut inside blocks becomes whole in between, unless it stays as it is.
        """
        for d in range(len(self.shape)):
            if self.placement.blocks_of(d) and self.placement.blocks_of(d) == target.blocks_of(d):
                self._exchange_blocks(d, target)
        source, plain = self.placement, target
        changed = [d for d in range(len(self.shape)) if self._changes_blocks(d, target)]
        for d in changed:
            plain = plain.without(target.dims[d]) if target.blocks_of(d) else plain
            if source.blocks_of(d):
                self.value, self.placement = from_blocks(
                    self.emitter, self.value, self.shape, self.placement, d, self.use
                )
        self._to(plain)
        for d in changed:
            if target.blocks_of(d):
                self.value, self.placement = to_blocks(self.emitter, self.value, self.shape, self.placement, d, target)
        return self.value

    def _changes_blocks(self, d: int, target: Placement) -> bool:
        """Whether a dim is cut inside blocks before or after, and not in the same way before and after."""
        before, after = self.placement.blocks_of(d), target.blocks_of(d)
        return bool(before or after) and (before, self.placement.dims[d]) != (after, target.dims[d])

    def _exchange_blocks(self, d: int, target: Placement) -> None:
        """An all-to-all where the innermost axes of a dim in blocks only change to another dim, or come from there."""
        present, wanted = self.placement.dims[d], target.dims[d]
        kept = min(present, wanted, key=len)
        moved = max(present, wanted, key=len)[len(kept) :]
        if not moved or (*kept, *moved) not in (present, wanted):
            return
        other, leaves = (target, True) if len(present) > len(wanted) else (self.placement, False)
        goal = next((e for e, axes in enumerate(other.dims) if e != d and axes[-len(moved) :] == moved), None)
        before = self.placement.dims[goal] if goal is not None else ()
        after = target.dims[goal] if goal is not None else ()
        if goal is None or (after != (*before, *moved) if leaves else before != (*after, *moved)):
            return
        if self.shape[goal] % self.emitter.size(max(before, after, key=len)):
            return
        dims = _with(_with(self.placement.dims, d, wanted), goal, after)
        if leaves:
            self._emit(ALL_TO_ALL, replace(self.placement, dims=dims), list(moved), goal, d)
            self.value = by_block(self.emitter, self.value, self.placement.blocks_of(d), d, moved)
        else:
            self.value = by_rank(self.emitter, self.value, self.placement.blocks_of(d), d, moved)
            self._emit(ALL_TO_ALL, replace(self.placement, dims=dims), list(moved), d, goal)

    def _to(self, target: Placement) -> None:
        self._reduce(target)
        self._exchange(target)
        for dim, axes in enumerate(target.dims):
            self._gather(dim, self._kept(dim, axes))
        for dim, axes in enumerate(target.dims):
            if self.placement.dims[dim] != axes:
                self._cut(dim, axes)
        for axis, reduce in target.partial:
            if (axis, reduce) not in self.placement.partial:
                self._to_partial(axis, reduce)

    def _reduce(self, target: Placement) -> None:
        all_reduced: dict[Reduce, list[str]] = {}
        over_microbatches = self.placement.on(MICROBATCH)
        scatters = any(isinstance(target.on(axis), Shard) for axis, _ in self.placement.partial)
        if isinstance(over_microbatches, Partial) and target.on(MICROBATCH) != over_microbatches and scatters:
            remaining = tuple(p for p in self.placement.partial if p[0] != MICROBATCH)
            self._emit(
                ALL_REDUCE, replace(self.placement, partial=remaining), [MICROBATCH], str(over_microbatches.reduce)
            )
        for axis, reduce in _outermost_first(self.placement.partial, target):
            goal = target.on(axis)
            if goal == Partial(reduce):
                continue
            if isinstance(goal, Shard) and self._can_scatter(goal.dim, axis, target):
                self._scatter(goal.dim, axis, reduce)
            else:
                all_reduced.setdefault(reduce, []).append(axis)
        for reduce, axes in all_reduced.items():
            remaining = tuple(p for p in self.placement.partial if p[0] not in axes)
            self._emit(ALL_REDUCE, replace(self.placement, partial=remaining), axes, str(reduce))

    def _can_scatter(self, dim: int, axis: str, target: Placement) -> bool:
        present = self.placement.dims[dim]
        nests = (*present, axis) == target.dims[dim][: len(present) + 1]
        return nests and (not present or self._is_aligned(dim, present, (*present, axis)))

    def _scatter(self, dim: int, axis: str, reduce: Reduce) -> None:
        present = self.placement.dims[dim]
        if not present:
            self._pad(dim, self.emitter.chunk(self.shape[dim], (axis,)) * self.emitter.size((axis,)))
        partial = tuple(p for p in self.placement.partial if p[0] != axis)
        after = replace(self.placement, dims=_with(self.placement.dims, dim, (*present, axis)), partial=partial)
        self._emit(REDUCE_SCATTER, after, [axis], dim, str(reduce))

    def _exchange(self, target: Placement) -> None:
        """An all-to-all where the innermost axes of a dim only change which dim they shard, both evenly."""
        for source in range(len(self.shape)):
            for goal in range(len(self.shape)):
                present, goal_axes = self.placement.dims[source], target.dims[goal]
                remaining = target.dims[source]
                moved = present[len(remaining) :]
                if source == goal or not moved or (*remaining, *moved) != present:
                    continue
                even = self.shape[source] % self.emitter.size(present) == 0
                nests = (*self.placement.dims[goal], *moved) == goal_axes
                if even and nests and self.shape[goal] % self.emitter.size(goal_axes) == 0:
                    dims = _with(_with(self.placement.dims, source, remaining), goal, goal_axes)
                    self._emit(ALL_TO_ALL, replace(self.placement, dims=dims), list(moved), goal, source)

    def _kept(self, dim: int, target: Axes) -> Axes:
        """The axes of the dim's present sharding that the target keeps, as far as chunks nest evenly."""
        present = self.placement.dims[dim]
        shared = 0
        while shared < min(len(present), len(target)) and present[shared] == target[shared]:
            shared += 1
        kept = present[:shared]
        nests = kept == present or self._is_aligned(dim, kept, present)
        return kept if kept and nests and (kept == target or self._is_aligned(dim, kept, target)) else ()

    def _gather(self, dim: int, kept: Axes) -> None:
        present = self.placement.dims[dim]
        if present == kept:
            return
        removed = present[len(kept) :]
        after = replace(self.placement, dims=_with(self.placement.dims, dim, kept))
        extent = self.shape[dim] if not kept else self.emitter.chunk(self.shape[dim], kept)
        gathered = from_mlir(self.value.type).shape[dim] * self.emitter.size(removed)
        if gathered == extent:
            self._emit(ALL_GATHER, after, list(removed), dim)
            return
        shape = _with(from_mlir(self.value.type).shape, dim, gathered)
        padded = TensorType(from_mlir(self.value.type).dtype, shape)
        whole = self.emitter.op(ALL_GATHER, self.value, list(removed), dim, type=padded)
        set_use(whole.owner, self.use)
        type_ = self.emitter.placed(self.value, self.shape, after)
        self.value = self.emitter.op("aten.slice.Tensor", whole, dim, 0, extent, type=type_)
        self.placement = after

    def _cut(self, dim: int, target: Axes) -> None:
        added = target[len(self.placement.dims[dim]) :]
        after = replace(self.placement, dims=_with(self.placement.dims, dim, target))
        self._emit("comm.shard", after, list(added), dim, self.emitter.chunk(self.shape[dim], target))

    def _to_partial(self, axis: str, reduce: Reduce) -> None:
        if reduce is not Reduce.SUM:
            raise RuntimeError(f"a replicated value cannot become a partial {reduce}")
        coordinate = self.emitter.op("comm.offset", [axis], 1, type=TensorType(torch.int64, ()))
        first = self.emitter.op("aten.eq.Scalar", coordinate, 0, type=TensorType(torch.bool, ()))
        after = replace(self.placement, partial=(*self.placement.partial, (axis, reduce)))
        type_ = self.emitter.placed(self.value, self.shape, after)
        self.value = self.emitter.op("aten.where.ScalarOther", first, self.value, 0.0, type=type_)
        self.placement = after

    def _pad(self, dim: int, extent: int) -> None:
        type_ = from_mlir(self.value.type)
        missing = extent - type_.shape[dim]
        if missing:
            pads = [0, 0] * (len(type_.shape) - 1 - dim) + [0, missing]
            padded = TensorType(type_.dtype, _with(type_.shape, dim, extent))
            self.value = self.emitter.op("aten.constant_pad_nd.default", self.value, pads, 0.0, type=padded)

    def _emit(self, name: str, after: Placement, *args: object) -> None:
        type_ = self.emitter.placed(self.value, self.shape, after)
        arguments = [list(a) if isinstance(a, tuple) else a for a in args]
        self.value = self.emitter.op(name, self.value, *arguments, type=type_)
        set_use(self.value.owner, self.use)
        self.placement = after

    def _is_aligned(self, dim: int, outer: Axes, inner: Axes) -> bool:
        """Whether the chunks over `inner` divide those over `outer` evenly."""
        extent = self.shape[dim]
        parts = self.emitter.size(inner[len(outer) :])
        return self.emitter.chunk(extent, outer) == self.emitter.chunk(extent, inner) * parts


def _outermost_first(partial: tuple[tuple[str, Reduce], ...], target: Placement) -> list[tuple[str, Reduce]]:
    """The partial axes, those that shard one dim of the target in the order in which they nest there."""
    ordered, axes = list(partial), [axis for axis, _ in partial]
    for nested in target.dims:
        found = [axis for axis in nested if axis in axes]
        for place, axis in zip(sorted(map(axes.index, found)), found, strict=True):
            ordered[place] = partial[axes.index(axis)]
    return ordered


def _with(items: tuple[T, ...], index: int, item: T) -> tuple[T, ...]:
    return (*items[:index], item, *items[index + 1 :])
