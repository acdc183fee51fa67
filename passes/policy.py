"""What the plan says of values that are no parameters: where activations are sharded, and where results must end.

Stored on the module as `comm.activations`, (axis, dim) pairs, with `comm.tokens`, the leading (batch, tokens) extents
that a value must have to be an activation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..ir.attributes import from_attribute, to_attribute
from ..ir.module import Module, Record
from ..ir.placement import AxisPlacement, Mesh, Placement, Replicate, Shard
from ..ir.types import TensorType


@dataclass(frozen=True)
class Policy:
    """`activations`: (axis, dim) of each statement about them; `leading`: the extents of the inputs' first two dims."""

    activations: tuple[tuple[str, int], ...] = ()
    leading: tuple[int, ...] = ()

    @staticmethod
    def of(module: Module) -> Policy:
        """Read the policy that `place-arguments` stored on the module."""
        attributes = module.operation.attributes
        if "comm.activations" not in attributes:
            return Policy()
        pairs = from_attribute(attributes["comm.activations"])
        return Policy(tuple((axis, dim) for axis, dim in pairs), tuple(from_attribute(attributes["comm.tokens"])))

    def store(self, module: Module) -> None:
        """Put the policy on the module, where the text shows it."""
        module.operation.attributes["comm.activations"] = to_attribute([[a, d] for a, d in self.activations])
        module.operation.attributes["comm.tokens"] = to_attribute(list(self.leading))

    def scatter_dims(self, type_: TensorType) -> tuple[tuple[str, int], ...]:
        """(axis, dim) where a partial value of this type is to be reduce-scattered: the plan's activations."""
        is_activation = (
            type_.dtype.is_floating_point
            and len(type_.shape) > len(self.leading)
            and type_.shape[: len(self.leading)] == self.leading
        )
        return tuple((a, d) for a, d in self.activations if d < len(type_.shape)) if is_activation else ()

    def reduced_to(self, axis: str, scatter: Mapping[str, int]) -> AxisPlacement:
        """What a partial axis becomes when it is reduced without a consumer that says more."""
        return Shard(scatter[axis]) if axis in scatter else Replicate()

    def output(self, record: Record, type_: TensorType, placement: Placement, mesh: Mesh) -> Placement:
        """Where a result of main must be: whole for scalars and in inference, else sharded as it is, never partial."""
        if not type_.shape or record.get("whole", True):
            return Placement.replicated(len(type_.shape))
        by_axis = {
            axis: placement.on(axis) if isinstance(placement.on(axis), Shard) else Replicate() for axis, _ in mesh
        }
        return Placement.of(len(type_.shape), by_axis, mesh)
