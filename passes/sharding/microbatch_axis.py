"""Placements over the microbatch axis: which reshards are possible, and the error for the others.

Microbatches are shards of the batch, but they run one after another. So nothing is gathered over them, and a sum over
them is known at one of three times: *early*, before any microbatch has run, where it depends on no parameter (the count
of a loss's targets); *late*, when all have run and no microbatch needs it (gradients, a loss); or between forwards and
backwards, where backwards alone need it (how many tokens go to each expert, in a balance loss).
"""

from __future__ import annotations

from enum import StrEnum

from ...costs.placements import EVERY_MICROBATCH
from ...diagnostics import Span, StrettoError
from ...ir.bindings import Operation
from ...ir.locations import from_location
from ...ir.module import callee
from ...ir.operations import read
from ...ir.pipelined_module import MICROBATCH
from ...ir.placement import AxisPlacement, Mesh, Partial, Placement, Shard


class Crossing(StrEnum):
    """Why a microbatch cannot compute an operation alone."""

    ROWS = "needs rows of other microbatches"
    SUM = "needs a sum over all microbatches, which the rest of the step depends on"
    STATISTICS = "takes its statistics of the whole batch"
    NO_RULE = "has no sharding rule, so that nothing is known of its rows"


_OTHER_LAYER = "take a layer that treats each row alone (a group norm for a batch norm)"
_WAYS_OUT = {
    Crossing.ROWS: f"{_OTHER_LAYER}, compute a number that is only looked at outside of the forward",
    Crossing.SUM: "use what is computed of all rows in the loss alone, not for rows of the forward, "
    "or detach a number that is only looked at",
    Crossing.STATISTICS: _OTHER_LAYER,
    Crossing.NO_RULE: "write it with ops that have a rule",
}


def has_microbatch_axis(mesh: Mesh) -> bool:
    """Whether a mesh has a microbatch axis."""
    return MICROBATCH in dict(mesh)


def changes_microbatches(
    source: Placement, axis: str, target: AxisPlacement, over_microbatches: AxisPlacement | None
) -> bool:
    """Whether a reshard from `source` to `target` on an axis changes which rows are in a microbatch.

    Microbatches are parts of a rank's part of the batch, so they keep their rows only while the ranks' parts do.
    `over_microbatches` is the value's target placement over microbatches.
    """
    source_placement = source.on(MICROBATCH)
    if over_microbatches != source_placement or not isinstance(source_placement, Shard):
        return False
    return (source.on(axis) == source_placement) != (target == source_placement)


def repeat_factor(
    source: Placement, axis: str, target: AxisPlacement, over_microbatches: AxisPlacement | None
) -> float:
    """How many times dearer a reduction over ranks is: each microbatch may have to repeat it, not once at the end."""
    reduces = isinstance(source.on(axis), Partial) and target != source.on(axis)
    is_repeated = isinstance(over_microbatches, Partial) and isinstance(source.on(MICROBATCH), Partial)
    return EVERY_MICROBATCH if reduces and is_repeated else 1.0


def crossing(source: Placement, target: Placement) -> Crossing | None:
    """What a reshard needs from other microbatches; None: nothing."""
    before, after = source.on(MICROBATCH), target.on(MICROBATCH)
    if isinstance(before, Shard):
        return Crossing.ROWS if before != after or source.dims[before.dim] != target.dims[before.dim] else None
    return Crossing.SUM if isinstance(before, Partial) and before != after else None


def refusal(op: Operation, reason: Crossing) -> StrettoError:
    """The error for an operation that prevents cutting the model into microbatches."""
    origin = from_location(op.location)
    call = read(op)
    name = call.name.split(".")[1] if call is not None else callee(op) or op.operation.name
    where = f" in {origin.module_path}" if origin.module_path else ""
    backward = "the backward of " if origin.backward else ""
    return StrettoError(
        "E0403",
        f'{backward}"{name}"{where} {reason}',
        span=Span(origin.file, origin.line) if origin.file else None,
        expected="expected an operation that each microbatch can do alone",
        help=f"{_WAYS_OUT[reason]}, or say in the pipeline that the loss is the mean of those of its microbatches: "
        "per microbatch",
    )
