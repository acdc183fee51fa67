"""The values of a function on their way to placements: where each is, and how it is brought to where it is needed."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field, replace

from ...ir.bindings import Location, Operation, Value, mlir
from ...ir.locations import Origin, from_location, to_location
from ...ir.operations import Call, build
from ...ir.pipelined_module import MICROBATCH
from ...ir.placement import Mesh, Placement, Replicate, Shard
from ...ir.types import TensorType, element_bytes, from_mlir, is_tensor, to_mlir
from ..policy import Policy
from ..rewriting import producer
from .choice import Operand, cheapest_source
from .propagation_remarks import PropagationRemarks
from .time_axis import Crossing, crossing, has_time, refusal


@dataclass
class Tracked:
    """A value of the old function: the copies of it in the new one, each with its placement; the first is the main."""

    type: TensorType
    copies: dict[Placement, Value]
    is_weight: bool = False
    is_early: bool = False
    """Whether it depends on no parameter, so that it can be there before any microbatch runs."""
    late: Operation | None = None
    """What first needed a sum over all microbatches that it depends on; None where it depends on none."""

    @property
    def placement(self) -> Placement:
        """Where its main copy is."""
        return next(iter(self.copies))

    @property
    def value(self) -> Value:
        """Its main copy."""
        return next(iter(self.copies.values()))


@dataclass
class TrackedValues:
    """The values of one old function; copies are made at the insertion point."""

    mesh: Mesh
    policy: Policy
    remarks: PropagationRemarks
    is_main: bool
    to_targets: Container[Value] = ()
    """Gradients and what they are made of, whose sums over microbatches are wanted only at the end."""
    _found: dict[Value, Tracked] = field(default_factory=dict)

    def __getitem__(self, value: Value) -> Tracked:
        return self._found[value]

    def __contains__(self, value: Value) -> bool:
        return value in self._found

    def track(
        self,
        old: Value,
        new: Value,
        *,
        is_weight: bool = False,
        is_early: bool = False,
        late: Operation | None = None,
    ) -> None:
        """Note the first copy of a value; what is no tensor has no placement."""
        if is_tensor(new.type):
            type_ = from_mlir(new.type)
            bare = TensorType(type_.dtype, type_.shape)
            self._found[old] = Tracked(bare, {type_.placement_on(self.mesh): new}, is_weight, is_early, late)

    def operand(self, value: Value, output_bytes: int = 0, *, is_viewed: bool = False) -> Operand:
        """A value as the choice of a strategy sees it."""
        tracked = self[value]
        nbytes = element_bytes(tracked.type)
        return Operand(
            placements=tuple(tracked.copies),
            nbytes=nbytes,
            is_weight=tracked.is_weight,
            is_broadcast=nbytes < output_bytes,
            is_viewed=is_viewed,
            is_zero=_is_zero(value),
            scatter_dims=self.policy.scatter_dims(tracked.type),
            is_early=tracked.is_early or value in self.to_targets,
            is_drawn=_is_drawn(tracked.value),
            is_late=tracked.late is not None,
        )

    def move(self, value: Value, target: Placement, op: Operation, *, is_last: bool = False) -> Value:
        """The copy of `value` at `target`, made by a `comm.reshard` if it is not there yet.

        `is_last`: it is a result of the step there. Raises E0403 for a move over microbatches that cannot be.
        """
        tracked = self[value]
        if target in tracked.copies:
            return tracked.copies[target]
        source = list(tracked.copies)[cheapest_source(self.operand(value), target, self.mesh)]
        type_ = to_mlir(tracked.type.placed(target, self.mesh))
        copy = tracked.copies[source]
        if has_time(self.mesh) and not _is_drawn(copy):
            self._cross(tracked, source, target, op, is_last)
        loc = _cause(copy, op) if source.partial else op.location
        [moved] = build(Call("comm.reshard", (copy,)), [type_], loc)
        self.remarks.count_move(tracked.type, source, target, loc)
        if source.partial and not target.partial:
            self.commit(value, moved)
        elif not target.partial:
            # What is drawn can be made anywhere: it is made where it is used, and nothing keeps it anywhere else.
            tracked.copies = {target: moved} if _is_drawn(copy) else {**tracked.copies, target: moved}
        return moved

    def move_out_of_time(self, value: Value, target: Placement, last: Operation) -> Value:
        """A result of main where it has to be; what microbatches hold of it is joined first, by itself."""
        placement = self[value].placement
        if isinstance(placement.on(MICROBATCH), Shard) and target.on(MICROBATCH) == Replicate():
            by_axis = {axis: placement.on(axis) for axis, _ in self.mesh if axis != MICROBATCH}
            self.move(value, Placement.of(len(placement.dims), by_axis, self.mesh), last, is_last=True)
        return self.move(value, target, last, is_last=True)

    def commit(self, value: Value, moved: Value) -> None:
        """Use `moved` instead of every partial copy from now on."""
        tracked = self[value]
        kept = {p: v for p, v in tracked.copies.items() if not p.partial}
        target = from_mlir(moved.type).placement_on(self.mesh)
        tracked.copies = {target: moved, **kept}

    def _cross(self, tracked: Tracked, source: Placement, target: Placement, op: Operation, is_last: bool) -> None:
        """Note what is moved over microbatches, or raise E0403 for what cannot be."""
        why = crossing(source, target)
        if why is None or (tracked.is_early and why is Crossing.SUM):
            return
        is_sum = why is Crossing.SUM and target.on(MICROBATCH) == Replicate() and self.is_main
        if not (is_sum or is_last):
            raise refusal(op, why)
        tracked.late = op


def _is_drawn(value: Value) -> bool:
    call = producer(value)
    return call is not None and call.name == "nn.random"


def _cause(partial: Value, user: Operation) -> Location:
    """The place of a reduction: what made the value partial is its cause, in the direction of what needs it reduced."""
    owner = partial.owner
    made = Origin() if isinstance(owner, mlir.Block) else from_location(owner.location)
    needed = from_location(user.location)
    if not made.module_path and not made.file:
        return user.location
    return to_location(replace(made, backward=needed.backward or made.backward))


def _is_zero(value: Value) -> bool:
    """Whether a value is made as zeros."""
    call = producer(value)
    if call is None or not call.name.startswith(("aten.full", "aten.new_full", "aten.zeros", "aten.new_zeros")):
        return False
    return "zeros" in call.name or call.args[-1] == 0
