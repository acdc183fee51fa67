"""Where the plan shards activations, and the placements of main's results.

Stored on the module as `comm.activations`, (axis, dim) pairs, with `comm.tokens`, the leading (batch, tokens) extents
by which an activation is recognised. Under a pipeline `comm.stages` names the pipeline axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..ir.attributes import from_attribute, to_attribute
from ..ir.module import Module, Record
from ..ir.placement import AxisPlacement, Mesh, Placement, Replicate, Shard
from ..ir.types import TensorType


@dataclass(frozen=True)
class ActivationSharding:
    """`shards`: (axis, dim) of each `shard activations`; `leading`: the extents of the inputs' first two dims.

    `pipeline_axis`: no activation is sharded over it; "" without a pipeline.
    """

    shards: tuple[tuple[str, int], ...] = ()
    leading: tuple[int, ...] = ()
    pipeline_axis: str = ""

    @staticmethod
    def of(module: Module) -> ActivationSharding:
        """What `place-arguments` stored on the module; empty where it stored nothing."""
        attributes = module.operation.attributes
        if "comm.activations" not in attributes:
            return ActivationSharding()
        pairs = from_attribute(attributes["comm.activations"])
        shards = tuple((axis, dim) for axis, dim in pairs)
        pipeline_axis = from_attribute(attributes["comm.stages"]) if "comm.stages" in attributes else ""
        return ActivationSharding(shards, tuple(from_attribute(attributes["comm.tokens"])), pipeline_axis)

    def store(self, module: Module) -> None:
        """Store it on the module as attributes."""
        module.operation.attributes["comm.activations"] = to_attribute([[a, d] for a, d in self.shards])
        module.operation.attributes["comm.tokens"] = to_attribute(list(self.leading))
        if self.pipeline_axis:
            module.operation.attributes["comm.stages"] = to_attribute(self.pipeline_axis)

    @property
    def nesting(self) -> Placement:
        """The order in which the axes of one dim nest, as the placement of an activation."""
        return Placement.of_shards(1 + max((dim for _, dim in self.shards), default=0), dict(self.shards))

    def scatter_dims(self, type_: TensorType) -> tuple[tuple[str, int], ...]:
        """(axis, dim) where a partial value of this type is reduce-scattered; empty if it is no activation."""
        is_activation = (
            type_.dtype.is_floating_point
            and len(type_.shape) > len(self.leading)
            and type_.shape[: len(self.leading)] == self.leading
        )
        return tuple((a, d) for a, d in self.shards if d < len(type_.shape)) if is_activation else ()

    def reduced_placement(self, axis: str, scatter: Mapping[str, int]) -> AxisPlacement:
        """The placement of a partial value on `axis` after its reduction, where its users do not decide."""
        return Shard(scatter[axis]) if axis in scatter else Replicate()

    def output_placement(self, record: Record, type_: TensorType, placement: Placement, mesh: Mesh) -> Placement:
        """The placement of a result of main: replicated for scalars and in inference, else never partial or zigzag."""
        if not type_.shape or record.get("whole", True):
            return Placement.replicated(len(type_.shape))
        for dim, blocks in placement.blocks:
            placement = placement.with_blocks(dim, ()) if min(blocks) < 0 else placement
        by_axis = {
            axis: placement.on(axis) if isinstance(placement.on(axis), Shard) else Replicate() for axis, _ in mesh
        }
        return Placement.of(len(type_.shape), by_axis, mesh, [placement])
