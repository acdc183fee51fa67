"""Split a sum over ranks into a reduce_scatter and an all_gather, so that work may move between the two.

Before (over tp=2)                               After
  %1 = comm.all_reduce %0 over ["tp"] : t<4x6>     %s = comm.reduce_scatter %0 over ["tp"], dim 0 : t<2x6>
                                                   %1 = comm.all_gather %s over ["tp"], dim 0 : t<4x6>

The dim is the first that the group's size divides and whose halves a type can tell: one that no other axis cuts, or
that only axes outside of the group's cut, evenly. Other sums are left, with a remark, as are maxima and minima.

Needs: level `comm`, before `start-collectives`.   Keeps: values: every element is the same sum.
Cost: none in bytes on the wires of a ring; one more operation's latency, and a copy where the dim is not the first.
Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations" (2009): an all-reduce
is a reduce-scatter and an all-gather, each of (n - 1)/n of the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, ClassVar

from ...ir.bindings import Operation, mlir
from ...ir.dialects.context import context
from ...ir.locations import from_location
from ...ir.module import Level, Module, operations
from ...ir.operations import read
from ...ir.placement import AxisPlacement, Mesh, Reduce, Shard, axes_size
from ...ir.types import TensorType, from_mlir
from ..base import Pass, Report
from ..counted_remarks import Tally
from ..option_values import Range
from ..partition.emitter import Emitter
from .start_collectives import described


@dataclass(frozen=True)
class SplitAllReduce(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "split-all-reduce"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    min_bytes: Annotated[int, Range(0, unit="bytes")] = 0
    """Sums of fewer bytes on a rank are left: their latency is what counts."""

    def run(self, module: Module) -> Report:
        count, tally = 0, Tally(self.name)
        for function in module.functions().values():
            for op in operations(function):
                if op.operation.name != "comm.all_reduce":
                    continue
                origin, what = from_location(op.location), described(op)
                dim = self._dim(op, module.mesh)
                if isinstance(dim, str):
                    tally.missed(f"{what} is left whole: {dim}", origin)
                else:
                    tally.applied(f"{what} split into reduce_scatter and all_gather along dim {dim}", origin)
                    _split(op, dim, module.mesh)
                    count += 1
        return Report(count, tally.remarks())

    def _dim(self, op: Operation, mesh: Mesh) -> int | str:
        """The dim to split along, or why there is none."""
        _, axes, reduce = _arguments(op)
        if reduce != Reduce.SUM:
            return f"it is a {reduce}, no sum"
        size = axes_size(mesh, axes)
        if size == 1:
            return "its group is one rank"
        type_ = from_mlir(op.results[0].type)
        held = prod(type_.shape) * type_.dtype.itemsize
        if held < self.min_bytes:
            return f"{held} bytes are fewer than min-bytes={self.min_bytes}"
        dims = (dim for dim in range(len(type_.shape)) if _splits(type_, dim, axes, mesh))
        return next(dims, f"{size} ranks divide none of the dims of {list(type_.shape)} that they could share")


def _arguments(op: Operation) -> tuple[mlir.Value, tuple[str, ...], str]:
    """Operand, axes and reduction of an all_reduce."""
    call = read(op)
    if call is None:
        raise RuntimeError(f"not an operation of the comm dialect: {op}")
    value, axes, reduce = call.args
    return value, tuple(axes), str(reduce)


def _splits(type_: TensorType, dim: int, axes: Sequence[str], mesh: Mesh) -> bool:
    """Whether the group can share a dim, and a type say so: types nest axes in the mesh's order."""
    order = [axis for axis, _ in mesh]
    size = axes_size(mesh, tuple(axes))
    held, cutting = type_.shape[dim], type_.placement_on(mesh).dims[dim]
    nested = [*cutting, *axes]
    is_whole = type_.global_shape(mesh)[dim] == held * axes_size(mesh, cutting)
    return held > 0 and held % size == 0 and is_whole and nested == sorted(nested, key=order.index)


def _split(op: Operation, dim: int, mesh: Mesh) -> None:
    """Replace one all_reduce; `_splits` holds for the dim."""
    value, axes, reduce = _arguments(op)
    result = op.results[0]
    emitter = Emitter(mesh, op.location)
    whole = from_mlir(result.type)
    part = _part(whole, dim, axes, mesh)
    with context(), mlir.InsertionPoint(op):
        scattered = emitter.op("comm.reduce_scatter", value, list(axes), dim, reduce, type=part)
        gathered = emitter.op("comm.all_gather", scattered, list(axes), dim, type=whole)
    result.replace_all_uses_with(gathered)
    op.operation.erase()


def _part(whole: TensorType, dim: int, axes: Sequence[str], mesh: Mesh) -> TensorType:
    """What a rank holds between the two."""
    shape = list(whole.shape)
    shape[dim] //= axes_size(mesh, tuple(axes))
    shares: dict[str, AxisPlacement] = {**dict(whole.placement), **{axis: Shard(dim) for axis in axes}}
    return TensorType(whole.dtype, tuple(shape), tuple(sorted(shares.items())), whole.extents)
