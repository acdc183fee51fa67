"""Propagate placements through one function, for one combination of placements of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...ir.attention_methods import ATTENTION, SCANS, band_of, methods_of, set_band, set_methods
from ...ir.bindings import Operation, Type, Value, mlir
from ...ir.collectives import RESHARD
from ...ir.dialects.context import context
from ...ir.locations import from_location
from ...ir.module import (
    Module,
    argument_records,
    build_call,
    build_function,
    callee,
    entry,
    finish_function,
    operations,
    result_records,
    terminator,
)
from ...ir.operations import Call, build, flatten, is_packing, made_by, read, regroup, results_of, set_use, use_of
from ...ir.pipelined_module import MICROBATCH
from ...ir.placement import Partial, Placement, Replicate, Shard
from ...ir.types import TensorType, element_bytes, from_mlir, is_tensor, to_mlir
from .attention_methods import returned, unfit
from .avoidable import avoidable
from .choice import Choice, Output, Unfit, choose
from .gradient_targets import NO_TARGETS, GradientTargets
from .microbatch_axis import Crossing, has_microbatch_axis, refusal
from .propagation_remarks import PropagationRemarks
from .rules.ir_calls import blocks_in, call_strategies
from .rules.views import TABLE as VIEWS
from .tracked_values import Tracked, TrackedValues

_FOLLOWS_WEIGHT = ("t.", "transpose.", "permute.", "view.", "reshape.", "_to_copy.", "expand.", "detach.", "alias.")


@dataclass(frozen=True)
class Signature:
    """What a function is specialised by."""

    name: str
    placements: tuple[Placement | None, ...]
    weights: tuple[bool, ...]
    early: tuple[bool, ...]
    """For each argument, as in `Tracked`; all False without a microbatch axis."""


@dataclass(frozen=True)
class Specialised:
    """A function of the new module: its name, its results' types, and which results are early."""

    name: str
    results: tuple[Type, ...]
    early: tuple[bool, ...]


class FunctionPlacement:
    """The rewrite of one function for one signature; `specialise` returns the functions that it calls."""

    def __init__(
        self,
        old: Operation,
        module: Module,
        signature: Signature,
        name: str,
        remarks: PropagationRemarks,
        specialise: Callable[[Signature], Specialised],
    ) -> None:
        self.old, self.name, self.remarks, self.specialise = old, name, remarks, specialise
        self.mesh, self.blocks = module.mesh, blocks_in(module)
        self.is_main = name == "main"
        types = [
            to_mlir(from_mlir(a.type).placed(p, self.mesh)) if p is not None else a.type
            for a, p in zip(entry(old).arguments, signature.placements, strict=True)
        ]
        self.new = build_function(module, name, types, records=argument_records(old) if self.is_main else None)
        self.targets = NO_TARGETS
        self.values = TrackedValues(self.mesh, remarks.activation_sharding, remarks, self.is_main)
        arguments = zip(entry(old).arguments, entry(self.new).arguments, strict=True)
        for (value, new), weight, early in zip(arguments, signature.weights, signature.early, strict=True):
            self.values.track(value, new, is_weight=weight, is_early=early)

    def bring_gradients_to(self, targets: GradientTargets) -> None:
        """Reshard gradients and updated buffers to their targets right after the ops that make them."""
        self.targets = targets
        self.values.to_targets = targets.with_sources

    def rewrite(self) -> Specialised:
        """Rewrite all operations."""
        with context(), mlir.InsertionPoint(entry(self.new)):
            for op in list(operations(self.old))[:-1]:
                self._rewrite(op)
            results = self._returned()
        finish_function(self.new, results, result_records(self.old) if self.is_main else None)
        returned = [self.values[v] for v in terminator(self.old).operands]
        return Specialised(self.name, tuple(v.type for v in results), tuple(t.is_early for t in returned))

    def _rewrite(self, op: Operation) -> None:
        name = callee(op)
        if name is not None:
            self._rewrite_call(op, name)
        elif not is_packing(op):
            self._rewrite_operation(op)
        for result in flatten(results_of(op)):
            if result in self.targets.placements and result in self.values:
                for target in self.targets.steps(result, self.values[result].placement, self.mesh):
                    self.values.commit(result, self.values.move(result, target, op, is_last=True))

    def _rewrite_operation(self, op: Operation) -> None:
        call = read(op)
        if call is None:
            raise RuntimeError(f"propagate-placements met an operation it does not know: {op}")
        values, results = call.values(), results_of(op)
        flat = flatten(results)
        if call.name == RESHARD:
            self._gather(op)
            return
        if flat[0] in self.targets.partial_casts:
            self._cast_partial(call, op)
            return
        types = [from_mlir(r.type) if is_tensor(r.type) else None for r in flat]
        choice = self._choice(call, op, flat, types)
        moved = [self.values.move(v, p, op) for v, p in zip(values, choice.inputs, strict=True)]
        early, late_cause = self._microbatch_state(op, values, choice)
        placed = [
            to_mlir(t.placed(p, self.mesh)) if t is not None and p is not None else r.type
            for r, t, p in zip(flat, types, choice.outputs, strict=True)
        ]
        new_results = build(call.replace_values(moved), regroup(results, placed), op.location)
        if call.name in ATTENTION:
            set_band(made_by(flatten(new_results)[0]), band_of(op))
            set_methods(made_by(flatten(new_results)[0]), methods_of(op))
        weight = len(values) == 1 and self.values[values[0]].is_weight and _follows_weight(call.name)
        for old, new in zip(flat, flatten(new_results), strict=True):
            self.values.track(old, new, is_weight=weight, is_early=early, late_cause=late_cause)
        of_op = methods_of(op) if call.name in ATTENTION else {}
        for old, target in returned(call.name, flat, choice.outputs, of_op, self.mesh):
            self.values.return_to(old, target, op, keep=call.name == ATTENTION[0])

    def _choice(self, call: Call, op: Operation, flat: Sequence[Value], types: Sequence[TensorType | None]) -> Choice:
        """The cheapest legal strategy of an operation on every axis."""
        values = call.values()
        strategies = call_strategies(call, types, self.blocks)
        if not strategies.known:
            self._remark_unknown(call, op, values)
        output_bytes = max((element_bytes(t) for t in types if t is not None), default=0)
        is_viewed, methods = call.name in VIEWS, methods_of(op)
        operands = [self.values.operand(v, output_bytes, is_viewed=is_viewed, with_kept=bool(methods)) for v in values]
        outputs = [
            None if t is None else Output(len(t.shape), element_bytes(t), self.targets.with_sources.get(r))
            for r, t in zip(flat, types, strict=True)
        ]
        nesting = self.remarks.activation_sharding.nesting
        try:
            of_attention = methods if call.name in (*ATTENTION, *SCANS) else None
            choice = choose(operands, strategies, outputs, self.mesh, nesting, of_attention)
        except Unfit as error:
            raise unfit(op, str(error), methods, self.mesh) from None
        origin = from_location(op.location)
        if not origin.backward:
            for axis, message in avoidable(operands, strategies.strategies, choice, self.mesh, origin):
                self.remarks.avoidable(axis, message, origin)
        return choice

    def _microbatch_state(
        self, op: Operation, values: Sequence[Value], choice: Choice
    ) -> tuple[bool, Operation | None]:
        """Whether an operation's results are early, and the operation that makes them late.

        Raises E0403 where it takes statistics of all microbatches, or the forward of one needs a late value. A backward
        may: all forwards have run then, if the schedule says so (`order-tasks`).
        """
        if not has_microbatch_axis(self.mesh):
            return False, None
        tracked = [self.values[v] for v in values]
        early, late_cause = (
            all(t.is_early for t in tracked),
            next((t.late_cause for t in tracked if t.late_cause is not None), None),
        )
        strategy = dict(choice.strategies)[MICROBATCH]
        if strategy.lowering is not None:
            raise refusal(op, Crossing.STATISTICS)
        if late_cause is not None and not all(
            isinstance(p, Replicate | None) for p in (*strategy.inputs, *strategy.outputs)
        ):
            if not from_location(op.location).backward:
                raise refusal(late_cause, Crossing.SUM)
            late_cause = None
        return early, late_cause

    def _gather(self, op: Operation) -> None:
        """Track a gather, or an input cut otherwise, as a value of its own, which no other use takes for a copy."""
        stored, placement = self.values[op.operands[0]], from_mlir(op.results[0].type).placement_on(self.mesh)
        type_ = to_mlir(stored.type.placed(placement, self.mesh))
        [gathered] = build(Call(RESHARD, (stored.value,)), [type_], op.location)
        set_use(gathered.owner, use_of(op))
        self.values.track(op.results[0], gathered, is_weight=stored.is_weight, is_early=stored.is_early)

    def _cast_partial(self, call: Call, op: Operation) -> None:
        """Cast a gradient before its reduction: it keeps its placement and stays unreduced."""
        [value] = call.values()
        tracked = self.values[value]
        type_ = from_mlir(op.results[0].type).placed(tracked.placement, self.mesh)
        [cast] = build(call.replace_values([tracked.value]), [to_mlir(type_)], op.location)
        self.values.track(op.results[0], cast, is_early=tracked.is_early, late_cause=tracked.late_cause)

    def _rewrite_call(self, op: Operation, name: str) -> None:
        operands = []
        for value in op.operands:
            tracked = self.values[value]
            placement = tracked.placement
            if tracked.late_cause is not None and not from_location(op.location).backward:
                raise refusal(tracked.late_cause, Crossing.SUM)
            if placement.partial and not _stays_partial(tracked):
                placement = self._reduced(tracked.type, placement)
            operands.append(self.values.move(value, placement, op))
        placements = tuple(from_mlir(v.type).placement_on(self.mesh) if is_tensor(v.type) else None for v in operands)
        weights = tuple(self.values[v].is_weight for v in op.operands)
        early = tuple(self.values[v].is_early for v in op.operands)
        target = self.specialise(Signature(name, placements, weights, early))
        results = build_call(target.name, operands, list(target.results), op.location)
        for old, new, is_early in zip(op.results, results, target.early, strict=True):
            self.values.track(old, new, is_early=is_early)

    def _reduced(self, type_: TensorType, placement: Placement) -> Placement:
        """The placement after its partial axes are reduced: to shards where the plan shards activations."""
        by_axis = {axis: placement.on(axis) for axis, _ in self.mesh}
        scatter = dict(self.remarks.activation_sharding.scatter_dims(type_))
        for axis, _ in placement.partial:
            by_axis[axis] = self.remarks.activation_sharding.reduced_placement(axis, scatter)
        like = [placement, self.remarks.activation_sharding.nesting]
        return Placement.of(len(placement.dims), by_axis, self.mesh, like)

    def _returned(self) -> list[Value]:
        values, last = list(terminator(self.old).operands), terminator(self.old)
        if not self.is_main:
            return [self.values[v].last_copy for v in values]
        returned = []
        for value, record in zip(values, result_records(self.old), strict=True):
            tracked = self.values[value]
            if value in self.targets.placements:
                target = self._target(value)
            else:
                target = self.remarks.activation_sharding.output_placement(
                    record, tracked.type, tracked.placement, self.mesh
                )
            returned.append(self.values.move_to_result(value, target, last))
        return returned

    def _target(self, value: Value) -> Placement:
        return self.targets.placement(value, self.values[value].placement, self.mesh)

    def _remark_unknown(self, call: Call, op: Operation, values: Sequence[Value]) -> None:
        """Remark that an operation has no sharding rule; raises E0403 where it would need microbatches gathered."""
        if any(isinstance(p.on(MICROBATCH), Shard) for v in values for p in self.values[v].copies):
            raise refusal(op, Crossing.NO_RULE)
        self.remarks.no_rule(call, op)


def _stays_partial(tracked: Tracked) -> bool:
    """Whether a partial value is passed to a function as it is, because its sum over microbatches is not known yet."""
    return isinstance(tracked.placement.on(MICROBATCH), Partial) and not tracked.is_early


def _follows_weight(name: str) -> bool:
    return name.removeprefix("aten.").startswith(_FOLLOWS_WEIGHT)
