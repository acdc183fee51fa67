"""The remarks of `propagate-placements`: reshards, operations without a rule, and the effect of statements."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...ir.bindings import Location, Operation
from ...ir.locations import Origin, from_location
from ...ir.operations import Call
from ...ir.pipelined_module import MICROBATCH
from ...ir.placement import Mesh, Partial, Placement, Shard
from ...ir.types import TensorType, axis_text
from ..activation_sharding import ActivationSharding
from ..base import Remark, RemarkKind
from ..counted_remarks import CountedRemarks
from ..plan_effects import activations_key

_PASS = "propagate-placements"


@dataclass
class PropagationRemarks:
    """Collected over all functions of a module."""

    mesh: Mesh
    activation_sharding: ActivationSharding
    moved: int = 0
    """How many reshards were inserted."""
    _moves: CountedRemarks = field(default_factory=lambda: CountedRemarks(_PASS))
    _unknown: dict[str, Remark] = field(default_factory=dict)
    _scattered: set[str] = field(default_factory=set)
    """The axes over which sums were reduce-scattered because the plan shards activations there."""

    def count_move(self, type_: TensorType, source: Placement, target: Placement, loc: Location) -> None:
        """Count a reshard."""
        self.moved += 1
        scatter_dims = self.activation_sharding.scatter_dims(type_)
        for axis, _ in self.mesh:
            before, after = source.on(axis), target.on(axis)
            if before != after:
                axis_name = "microbatches" if axis == MICROBATCH else axis
                change = f"{axis_text(before)} to {axis_text(after)} over {axis_name}"
                self._moves.applied(change, from_location(loc))
            if isinstance(before, Partial) and isinstance(after, Shard) and (axis, after.dim) in scatter_dims:
                self._scattered.add(axis)

    def avoidable(self, axis: str, message: str, origin: Origin) -> None:
        """Note a redistribution that a statement would avoid, unless the plan wants it: it cuts activations."""
        if all(axis != name for name, _ in self.activation_sharding.shards):
            self._moves.add(RemarkKind.NOTE, message, origin)

    def no_rule(self, call: Call, op: Operation) -> None:
        """Note, once for each module of the model, an operation without a sharding rule."""
        origin = from_location(op.location)
        message = f'"{call.name}" has no sharding rule: its operands are gathered and every rank computes it'
        remark = Remark(_PASS, RemarkKind.MISSED, message, origin)
        self._unknown.setdefault(f"{call.name} {origin.module_path}", remark)

    def all(self) -> tuple[Remark, ...]:
        """Operations without a rule, then moves."""
        return (*self._unknown.values(), *self._moves.remarks())

    def effects(self) -> dict[str, str]:
        """By key of the statements about activations: why nothing was sharded; empty where something was."""
        leading = ", ".join(str(extent) for extent in self.activation_sharding.leading)
        reason = f"no sum of shape ({leading}, ...) is left to reduce over {{axis}}, and only such sums are scattered"
        return {
            activations_key(axis): "" if axis in self._scattered else reason.format(axis=f'"{axis}"')
            for axis, _ in self.activation_sharding.shards
            if dict(self.mesh)[axis] > 1
        }
