"""The values of a function during placement propagation: the placements of their copies, and reshards between them."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field, replace

from ...ir.bindings import Location, Operation, Value, mlir
from ...ir.locations import Origin, from_location, to_location
from ...ir.operations import Call, build
from ...ir.pipelined_module import MICROBATCH
from ...ir.placement import Mesh, Placement, Replicate, Shard
from ...ir.types import TensorType, element_bytes, from_mlir, is_tensor, to_mlir
from ..activation_sharding import ActivationSharding
from ..rewriting import producer
from .choice import Operand, cheapest_source
from .microbatch_axis import Crossing, crossing, has_microbatch_axis, refusal
from .propagation_remarks import PropagationRemarks


class SumInLayer(Exception):
    """A folded layer needs a sum over all microbatches: in main that may be possible."""


@dataclass
class Tracked:
    """A value of the old function: its copies in the new one, by placement; the first is the main copy."""

    type: TensorType
    copies: dict[Placement, Value]
    is_weight: bool = False
    is_early: bool = False
    """Whether it depends on no parameter, so that it can be computed before any microbatch runs."""
    late_cause: Operation | None = None
    """The first operation that needed a sum over all microbatches on which this value depends; None: there is none."""
    kept: tuple[Placement, Value] | None = None
    """A copy for the backward alone: in the placement in which attention made it, whose other users need another."""

    @property
    def placement(self) -> Placement:
        """The placement of its main copy."""
        return next(iter(self.copies))

    @property
    def value(self) -> Value:
        """Its main copy."""
        return next(iter(self.copies.values()))

    @property
    def last_copy(self) -> Value:
        """The copy for the backward, else that made last: a backward reads what the forward's last user needed."""
        return self.kept[1] if self.kept is not None else next(reversed(self.copies.values()))


@dataclass
class TrackedValues:
    """The values of one old function; copies are made at the insertion point."""

    mesh: Mesh
    activation_sharding: ActivationSharding
    remarks: PropagationRemarks
    is_main: bool
    to_targets: Container[Value] = ()
    """Gradients and their sources, whose sums over microbatches are needed only after all of them."""
    _tracked: dict[Value, Tracked] = field(default_factory=dict)

    def __getitem__(self, value: Value) -> Tracked:
        return self._tracked[value]

    def __contains__(self, value: Value) -> bool:
        return value in self._tracked

    def track(
        self,
        old: Value,
        new: Value,
        *,
        is_weight: bool = False,
        is_early: bool = False,
        late_cause: Operation | None = None,
    ) -> None:
        """Note the first copy of a value; non-tensors have no placement and are skipped."""
        if is_tensor(new.type):
            type_ = from_mlir(new.type)
            bare = TensorType(type_.dtype, type_.shape)
            self._tracked[old] = Tracked(bare, {type_.placement_on(self.mesh): new}, is_weight, is_early, late_cause)

    def operand(
        self, value: Value, output_bytes: int = 0, *, is_viewed: bool = False, with_kept: bool = False
    ) -> Operand:
        """A value as the choice of a strategy sees it; `with_kept` for the backward of the op that made it."""
        tracked = self[value]
        kept = tracked.kept
        nbytes = element_bytes(tracked.type)
        return Operand(
            placements=(*([kept[0]] if with_kept and kept is not None else []), *tracked.copies),
            nbytes=nbytes,
            is_weight=tracked.is_weight,
            is_broadcast=nbytes < output_bytes,
            is_viewed=is_viewed,
            is_zero=_is_zero(value),
            scatter_dims=self.activation_sharding.scatter_dims(tracked.type),
            is_early=tracked.is_early or value in self.to_targets,
            is_drawn=_is_drawn(tracked.value),
            is_late=tracked.late_cause is not None,
            never_cut_over="" if tracked.is_weight else self.activation_sharding.pipeline_axis,
        )

    def move(self, value: Value, target: Placement, op: Operation, *, is_last: bool = False) -> Value:
        """The copy of `value` with placement `target`, made by a `comm.reshard` if there is none yet.

        `is_last`: the copy is a result of the step. Raises E0403 for an impossible reshard over microbatches.
        """
        tracked = self[value]
        if target in tracked.copies:
            return tracked.copies[target]
        if tracked.kept is not None and tracked.kept[0] == target:
            return tracked.kept[1]
        source = list(tracked.copies)[cheapest_source(self.operand(value), target, self.mesh)]
        type_ = to_mlir(tracked.type.placed(target, self.mesh))
        copy = tracked.copies[source]
        if has_microbatch_axis(self.mesh) and not _is_drawn(copy):
            self._cross(tracked, source, target, op, is_last)
        loc = _cause(copy, op) if source.partial else op.location
        [moved] = build(Call("comm.reshard", (copy,)), [type_], loc)
        self.remarks.count_move(tracked.type, source, target, loc)
        if source.partial and not target.partial:
            self.commit(value, moved)
        elif not target.partial:
            # Random values can be drawn in any placement: they are drawn as their user needs them, and not copied.
            tracked.copies = {target: moved} if _is_drawn(copy) else {**tracked.copies, target: moved}
        return moved

    def return_to(self, value: Value, target: Placement, op: Operation, *, keep: bool) -> None:
        """Bring a value that `op` has just made to `target`; with `keep`, its backward reads it as it was made."""
        tracked = self[value]
        made = tracked.placement, tracked.value
        moved = self.move(value, target, op)
        tracked.copies, tracked.kept = {target: moved}, made if keep else None

    def move_to_result(self, value: Value, target: Placement, last: Operation) -> Value:
        """A result of main in its required placement; its microbatches are gathered first, in a separate reshard."""
        placement = self[value].placement
        if isinstance(placement.on(MICROBATCH), Shard) and target.on(MICROBATCH) == Replicate():
            by_axis = {axis: placement.on(axis) for axis, _ in self.mesh if axis != MICROBATCH}
            one_microbatch = Placement.of(len(placement.dims), by_axis, self.mesh, [placement])
            self.move(value, one_microbatch, last, is_last=True)
        return self.move(value, target, last, is_last=True)

    def commit(self, value: Value, moved: Value) -> None:
        """Use `moved` instead of every partial copy from now on."""
        tracked = self[value]
        kept = {p: v for p, v in tracked.copies.items() if not p.partial}
        target = from_mlir(moved.type).placement_on(self.mesh)
        tracked.copies = {target: moved, **kept}

    def _cross(self, tracked: Tracked, source: Placement, target: Placement, op: Operation, is_last: bool) -> None:
        """Note a reshard over microbatches; raise E0403 where it is impossible, `SumInLayer` in a layer's function."""
        needed = crossing(source, target)
        if needed is None or (tracked.is_early and needed is Crossing.SUM):
            return
        is_sum = needed is Crossing.SUM and target.on(MICROBATCH) == Replicate()
        if is_sum and not self.is_main:
            raise SumInLayer
        if not (is_sum or is_last):
            raise refusal(op, needed)
        tracked.late_cause = op


def _is_drawn(value: Value) -> bool:
    call = producer(value)
    return call is not None and call.name == "nn.random"


def _cause(partial: Value, user: Operation) -> Location:
    """The location of a reduction: of the op that made the value partial, in the direction of its user."""
    owner = partial.owner
    origin = Origin() if isinstance(owner, mlir.Block) else from_location(owner.location)
    user_origin = from_location(user.location)
    if not origin.module_path and not origin.file:
        return user.location
    return to_location(replace(origin, backward=user_origin.backward or origin.backward))


def _is_zero(value: Value) -> bool:
    """Whether a value is all zeros by construction."""
    call = producer(value)
    if call is None or not call.name.startswith(("aten.full", "aten.new_full", "aten.zeros", "aten.new_zeros")):
        return False
    return "zeros" in call.name or call.args[-1] == 0
