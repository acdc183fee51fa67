"""What `propagate-placements` says: values moved, operations without a rule, and the effect of statements."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...ir.bindings import Location, Operation
from ...ir.locations import from_location
from ...ir.operations import Call
from ...ir.pipelined_module import MICROBATCH
from ...ir.placement import Mesh, Partial, Placement, Shard
from ...ir.types import TensorType, axis_text
from ..base import Remark, RemarkKind
from ..counted_remarks import Tally
from ..plan_effects import activations_key
from ..policy import Policy

_PASS = "propagate-placements"


@dataclass
class PropagationRemarks:
    """Collected over all functions of a module."""

    mesh: Mesh
    policy: Policy
    moved: int = 0
    """How many values were brought from one placement to another."""
    _moves: Tally = field(default_factory=lambda: Tally(_PASS))
    _unknown: dict[str, Remark] = field(default_factory=dict)
    _scattered: set[str] = field(default_factory=set)
    """The axes over which sums were scattered because the plan shards activations there."""

    def count_move(self, type_: TensorType, source: Placement, target: Placement, loc: Location) -> None:
        """Count a value that is brought from one placement to another."""
        self.moved += 1
        wanted = self.policy.scatter_dims(type_)
        for axis, _ in self.mesh:
            ours, theirs = source.on(axis), target.on(axis)
            if ours != theirs:
                over = "microbatches" if axis == MICROBATCH else axis
                change = f"{axis_text(ours)} to {axis_text(theirs)} over {over}"
                self._moves.applied(change, from_location(loc))
            if isinstance(ours, Partial) and isinstance(theirs, Shard) and (axis, theirs.dim) in wanted:
                self._scattered.add(axis)

    def no_rule(self, call: Call, op: Operation) -> None:
        """Say once for each module of the model that an operation has no sharding rule."""
        origin = from_location(op.location)
        message = f'"{call.name}" has no sharding rule: its operands are gathered and every rank computes it'
        remark = Remark(_PASS, RemarkKind.MISSED, message, origin)
        self._unknown.setdefault(f"{call.name} {origin.module_path}", remark)

    def all(self) -> tuple[Remark, ...]:
        """Operations without a rule, then moves."""
        return (*self._unknown.values(), *self._moves.remarks())

    def effects(self) -> dict[str, str]:
        """By key of the statements about activations: why nothing was cut; empty where something was."""
        leading = ", ".join(str(extent) for extent in self.policy.leading)
        why = f"no sum of shape ({leading}, ...) is left to reduce over {{axis}}, and only such sums are scattered"
        return {
            activations_key(axis): "" if axis in self._scattered else why.format(axis=f'"{axis}"')
            for axis, _ in self.policy.activations
            if dict(self.mesh)[axis] > 1
        }
