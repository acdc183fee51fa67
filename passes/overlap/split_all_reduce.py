"""Split an all_reduce into a reduce_scatter and an all_gather, so that work may move between the two.

Before (over tp=2)                               After
  %1 = comm.all_reduce %0 over ["tp"] : t<4x6>     %s = comm.reduce_scatter %0 over ["tp"], dim 0 : t<2x6>
                                                   %1 = comm.all_gather %s over ["tp"], dim 0 : t<4x6>

The dim is the first that the group's size divides and that no axis shards, or only axes that divide it evenly; the
group nests inside of these. Other sums are left, with a remark, as are maxima and minima.

Needs: level `comm`, before `start-collectives`.   Keeps: values: every element is the same sum.
Cost: none in bytes on the wires of a ring; one more operation's latency, and a copy where the dim is not the first.
Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations" (2009): an all-reduce
is a reduce-scatter and an all-gather, each of (n - 1)/n of the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Annotated, ClassVar

from ...ir.collectives import ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER
from ...ir.module import Level, Module
from ...ir.placement import Mesh, Reduce, axes_size
from ...ir.types import TensorType
from ..base import Pass, Report
from ..collective_text import collective_text
from ..option_values import Range
from ..rewriting import Applied, Declined, Outcome, Site, rewrite


@dataclass(frozen=True)
class SplitAllReduce(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "split-all-reduce"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    min_bytes: Annotated[int, Range(0, unit="bytes")] = 0
    """Sums of fewer bytes on a rank are left: their cost is latency."""

    def run(self, module: Module) -> Report:
        return rewrite(module, self.name, {ALL_REDUCE: partial(self._split, mesh=module.mesh)})

    def _split(self, site: Site, mesh: Mesh) -> Outcome:
        dim, what = self._dim(site, mesh), collective_text(site.op)
        if isinstance(dim, str):
            return Declined(f"{what} is left whole: {dim}")
        _split(site, dim, mesh)
        return Applied(f"{what} split into reduce_scatter and all_gather along dim {dim}")

    def _dim(self, site: Site, mesh: Mesh) -> int | str:
        """The dim to split along, or why there is none."""
        _, axes, reduce = site.call.args
        if reduce != Reduce.SUM:
            return f"it is a {reduce}, no sum"
        size = axes_size(mesh, tuple(axes))
        if size == 1:
            return "its group is one rank"
        type_ = site.type
        nbytes = prod(type_.shape) * type_.dtype.itemsize
        if nbytes < self.min_bytes:
            return f"{nbytes} bytes are fewer than min-bytes={self.min_bytes}"
        dims = (dim for dim in range(len(type_.shape)) if splits(type_, dim, axes, mesh))
        return next(dims, f"{size} ranks divide none of the dims of {list(type_.shape)} that they could share")


def splits(type_: TensorType, dim: int, axes: Sequence[str], mesh: Mesh) -> bool:
    """Whether the group can shard a dim: inside of the axes that shard it already."""
    size = axes_size(mesh, tuple(axes))
    extent, sharding_axes = type_.shape[dim], type_.placement_on(mesh).dims[dim]
    is_whole = type_.global_shape(mesh)[dim] == extent * axes_size(mesh, sharding_axes)
    return extent > 0 and extent % size == 0 and is_whole


def _split(site: Site, dim: int, mesh: Mesh) -> None:
    """Replace one all_reduce; `splits` holds for the dim."""
    value, axes, reduce = site.call.args
    scattered = site.emitter.op(
        REDUCE_SCATTER, value, axes, dim, reduce, type=scattered_type(site.type, dim, axes, mesh)
    )
    site.replace(site.emitter.op(ALL_GATHER, scattered, axes, dim, type=site.type))


def scattered_type(type_: TensorType, dim: int, axes: Sequence[str], mesh: Mesh) -> TensorType:
    """The local type between the two."""
    shape = list(type_.shape)
    shape[dim] //= axes_size(mesh, tuple(axes))
    placement = type_.placement_on(mesh)
    dims = tuple((*present, *axes) if index == dim else present for index, present in enumerate(placement.dims))
    return replace(type_, shape=tuple(shape)).placed(replace(placement, dims=dims), mesh)
