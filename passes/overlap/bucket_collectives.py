"""Move several tensors by one collective: a bucket of neighbouring reductions, up to a number of bytes.

Before (gradients of two parameters)              After
  %0 = comm.all_reduce %a over ["dp"]               %0, %1 = comm.all_reduce_coalesced %a, %b over ["dp"]
  %1 = comm.all_reduce %b over ["dp"]

A bucket takes collectives of one kind, group, reduction, dtype and lane. It stands where its last one stood, and ends
before an operation that uses one of its results, before a custom op, and where the next tensor would make it too large.
So reductions whose results only leave the function, as those of gradients, are combined, and a sum that the next
operation needs is not. In `main`, what depends on a tangent and what does not are in different buckets, because forward
and backward run apart. A collective over the pipeline axis stays alone.

Needs: level `comm`, before `start-collectives`.   Keeps: values (each element is the same sum), and one order of
collectives on all ranks.
Cost: as many bytes in fewer messages, so less latency; on examples/gpt under dp.plan 3 collectives instead of 38. A
bucket starts when its last tensor is there, so less work hides it; tensors that wait for it live longer. Between
processes a bucket is copied into a flat tensor, and its sums are windows of one, which lives as long as any of them. So
it is part of a compile only where `zero` says `bucket`: `max-bytes` weighs latency against overlap.
Source: Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training" (VLDB 2020), section 3.2.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Annotated, ClassVar

from ...ir.bindings import Operation, Value, mlir
from ...ir.collectives import COALESCED, COLLECTIVES
from ...ir.dialects.context import context
from ...ir.lanes import lane_of
from ...ir.locations import from_location
from ...ir.module import Level, Module, argument_records, entry, operations
from ...ir.operations import Call, build, is_packing, read, set_use, use_of
from ...ir.pipelined_module import entry_names, pipeline_axis
from ...ir.placement import axes_size
from ...ir.types import from_mlir
from ..base import Pass, Report
from ..collective_text import collective_text
from ..counted_remarks import CountedRemarks
from ..option_values import Range
from .custom_ops import IsBarrier, communication_barriers
from .positions import copy_position

Key = tuple[object, ...]
"""What the collectives of a bucket have in common."""


@dataclass(frozen=True)
class BucketCollectives(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "bucket-collectives"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    max_bytes: Annotated[int, Range(0, unit="bytes")] = 25 << 20
    """The largest bucket: bytes of the operands on a rank, or of the results of all_gathers. 25 MiB is that of
    DistributedDataParallel."""
    kinds: str = "all_reduce,reduce_scatter"
    """Which collectives, separated by commas; all_gathers too would make parameters whole earlier."""

    def run(self, module: Module) -> Report:
        count, remarks = 0, CountedRemarks(self.name)
        is_barrier, entries = communication_barriers(module), entry_names(module)
        for name, function in module.functions().items():
            late = _dependents_of_tangents(function) if name in entries else set()
            for bucket in self._buckets(module, function, late, is_barrier):
                what = collective_text(bucket.members[0])
                message = f"bucket of {len(bucket.members)} x {what}, {bucket.bytes} bytes"
                remarks.applied(message, from_location(bucket.members[0].location))
                count += len(bucket.members)
                _combine(bucket)
        return Report(count, remarks.remarks())

    def _buckets(
        self, module: Module, function: Operation, late: set[Operation], is_barrier: IsBarrier
    ) -> Iterator[_Bucket]:
        """The buckets of at least two collectives, each when it ends."""
        ended: list[_Bucket] = []
        filling: dict[Key, _Bucket] = {}
        for op in operations(function):
            used = {*op.operands}
            ends = is_barrier(op)
            for key, bucket in list(filling.items()):
                if ends or used & bucket.results:
                    ended.append(filling.pop(key))
            candidate = self._key(module, op, late)
            if candidate is None:
                continue
            key, size = candidate
            if key in filling and filling[key].bytes + size > self.max_bytes:
                ended.append(filling.pop(key))
            filling.setdefault(key, _Bucket()).add(op, size)
        yield from (bucket for bucket in (*ended, *filling.values()) if len(bucket.members) > 1)

    def _key(self, module: Module, op: Operation, late: set[Operation]) -> tuple[Key, int] | None:
        """What the bucket of a collective must have in common with it, and its bytes; None for what takes no part."""
        call = read(op) if op.operation.name in COALESCED else None
        if call is None or COLLECTIVES[call.name].kind not in self.kinds.replace(" ", "").split(","):
            return None
        axes = tuple(call.args[1])
        if pipeline_axis(module) in axes or axes_size(module.mesh, axes) == 1:
            return None
        operand, result = from_mlir(call.args[0].type), from_mlir(op.results[0].type)
        reduction = call.args[-1] if isinstance(call.args[-1], str) else ""
        phase = (op in late, from_location(op.location).backward)
        size = max(prod(type_.shape) for type_ in (operand, result)) * operand.dtype.itemsize
        return (call.name, axes, reduction, operand.dtype, phase, lane_of(op)), size


@dataclass
class _Bucket:
    """Collectives that become one."""

    members: list[Operation] = field(default_factory=list)
    results: set[Value] = field(default_factory=set)
    bytes: int = 0

    def add(self, op: Operation, size: int) -> None:
        """Add a collective."""
        self.members.append(op)
        self.results.update(op.results)
        self.bytes += size


def _dependents_of_tangents(function: Operation) -> set[Operation]:
    """The operations of an entry that depend on a tangent; none in one that has none."""
    pairs = zip(entry(function).arguments, argument_records(function), strict=True)
    reached = {argument for argument, record in pairs if record.get("kind") == "tangent"}
    dependents = set()
    for op in operations(function) if reached else ():
        if not reached.isdisjoint(op.operands):
            reached.update(op.results)
            if not is_packing(op):
                dependents.add(op)
    return dependents


def _combine(bucket: _Bucket) -> None:
    """Replace the collectives by one, where the last of them stands."""
    calls = [call for op in bucket.members if (call := read(op)) is not None]
    first, last = calls[0], bucket.members[-1]
    operands = [call.args[0] for call in calls]
    dims = [[call.args[2] for call in calls]] if isinstance(first.args[2], int) else []
    constants = [first.args[1], *dims, *first.args[2 + len(dims) :]]
    types = [op.results[0].type for op in bucket.members]
    name = COALESCED[first.name].name
    with context(), mlir.InsertionPoint(last):
        [results] = build(
            Call(name, (operands, *constants)), [types], bucket.members[0].location, lane_of(bucket.members[0])
        )
    combined = results[0].owner.operands[0].owner
    set_use(combined, use_of(bucket.members[0]))
    copy_position(last, combined)
    for op, result in zip(bucket.members, results, strict=True):
        op.results[0].replace_all_uses_with(result)
        op.operation.erase()
