"""The axis of time: what may cross microbatches, what it costs, and the refusal of what may not.

Microbatches are parts of the batch as ranks' parts are, but they come one after another, and each is gone when the next
one comes. So nothing is gathered over them, and a sum over them is there only at one of two times: *early*, before any
microbatch has run, where it depends on no parameter (the count of a loss's targets); or *late*, when all have run,
where no microbatch needs it any more (gradients, a loss).
"""

from __future__ import annotations

from enum import StrEnum

from ...diagnostics import Span, StrettoError
from ...ir.bindings import Operation
from ...ir.locations import from_location
from ...ir.module import callee
from ...ir.operations import read
from ...ir.pipelined_module import MICROBATCH
from ...ir.placement import AxisPlacement, Mesh, Partial, Placement, Replicate, Shard

COUPLES = 1e30
"""The cost of what is possible only if no microbatch needs it any more, or not at all."""
_CUT = 1e-3
"""The cost of cutting what is whole, per byte."""
_AGAIN = 1e3
"""How many times dearer it is to reduce for every microbatch than once."""


class Crossing(StrEnum):
    """Why an operation cannot be done by each microbatch alone."""

    ROWS = "needs rows of other microbatches"
    SUM = "needs a sum over all microbatches, which the rest of the step depends on"
    STATISTICS = "takes its statistics of the whole batch"
    NO_RULE = "has no sharding rule, so that nothing is known of its rows"


_OTHER_LAYER = "take a layer that treats each row alone (a group norm for a batch norm)"
_WAYS_OUT = {
    Crossing.ROWS: f"{_OTHER_LAYER}, compute a number that is only looked at outside of the forward",
    Crossing.SUM: "make the loss of sums and means over rows, added and scaled (not a root or a product of them), "
    "or detach a number that is only looked at",
    Crossing.STATISTICS: _OTHER_LAYER,
    Crossing.NO_RULE: "write it with ops that have a rule",
}


def has_time(mesh: Mesh) -> bool:
    """Whether a mesh has an axis of time."""
    return MICROBATCH in dict(mesh)


def time_cost(nbytes: int, source: AxisPlacement, target: AxisPlacement, *, early: bool, free: bool) -> float:
    """What it costs to bring a tensor from one placement to another over time.

    `early`: its sum is there before any microbatch runs. `free`: its elements can be made anywhere.
    """
    match source, target:
        case _ if source == target:
            return 0.0
        case Replicate(), Shard():
            return _CUT * nbytes
        case Replicate(), Partial():
            return 2 * _CUT * nbytes
        case Partial(), Replicate() if early:
            return 2.0 * nbytes
        case Shard(), Replicate() | Shard() if free:
            return _CUT * nbytes
        case _:
            return COUPLES


def mixes_rows(source: Placement, axis: str, target: AxisPlacement, in_time: AxisPlacement | None) -> bool:
    """Whether to bring `source` to `target` on an axis changes which rows are in a microbatch.

    Microbatches are parts of what a rank holds of the batch: they stay as they are only while the ranks' parts do.
    `in_time` is what the value is to be over microbatches.
    """
    there = source.on(MICROBATCH)
    if in_time != there or not isinstance(there, Shard):
        return False
    return (source.on(axis) == there) != (target == there)


def repeated(source: Placement, axis: str, target: AxisPlacement, in_time: AxisPlacement | None) -> float:
    """How much dearer a reduction over ranks is where every microbatch would do what can be done once, at the end."""
    again = isinstance(in_time, Partial) and isinstance(source.on(MICROBATCH), Partial)
    return _AGAIN if again and isinstance(source.on(axis), Partial) and target != source.on(axis) else 1.0


def crossing(source: Placement, target: Placement) -> Crossing | None:
    """What a change of placement needs of other microbatches."""
    ours, theirs = source.on(MICROBATCH), target.on(MICROBATCH)
    if isinstance(ours, Shard):
        return Crossing.ROWS if ours != theirs or source.dims[ours.dim] != target.dims[ours.dim] else None
    return Crossing.SUM if isinstance(ours, Partial) and ours != theirs else None


def refusal(op: Operation, why: Crossing) -> StrettoError:
    """The error of a model that cannot be cut into microbatches because of one operation."""
    origin = from_location(op.location)
    call = read(op)
    name = call.name.split(".")[1] if call is not None else callee(op) or op.operation.name
    where = f" in {origin.module_path}" if origin.module_path else ""
    backward = "the backward of " if origin.backward else ""
    return StrettoError(
        "E0403",
        f'{backward}"{name}"{where} {why}',
        span=Span(origin.file, origin.line) if origin.file else None,
        expected="expected an operation that each microbatch can do alone",
        help=f"{_WAYS_OUT[why]}, or say in the pipeline that the loss is the mean of those of its microbatches: "
        "per microbatch",
    )
