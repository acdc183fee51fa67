"""Give every value a placement, forward and backward, and say where one has to change.

Before                                              After
  %h = aten.mm %x, %w : (.., t<.. {tp=shard(1)}>)     %h = aten.mm %x, %w : .. -> t<.. {tp="shard(1)"}>
  %y = aten.mm %h, %v : (.., t<.. {tp=shard(0)}>)     %y = aten.mm %h, %v : .. -> t<.. {tp="partial(sum)"}>
  %z = nn.rms_norm %y, %g                             %r = comm.reshard %y : .. -> t<..>
                                                      %z = nn.rms_norm %r, %g

Each op in order takes the cheapest legal row of its sharding rules on each axis (`sharding/choice.py`), given where
its operands are. A value that was moved is there for later ops too; a partial value, once reduced, is not used again
as partial. A function is copied once for each combination of placements that it is called with. Gradients are brought
to their parameters' placements where they are made, so that a reduction can start at once, in the dtype that
`cast-gradients` has noted. Over the axis of time nothing moves but sums that are there before any microbatch runs, or
when all have run (`sharding/time_axis.py`); an operation that needs more is refused (E0403).

Source: the propagation of PyTorch's DTensor, applied to a whole graph; Megatron-LM's placements fall out of it.
Needs: level `aten`, placements on main's arguments (`place-arguments`).   Keeps: values.   Shapes stay global.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ...ir.bindings import Location, Operation, Type, Value, mlir
from ...ir.dialects.context import context
from ...ir.locations import Origin, from_location, to_location
from ...ir.module import (
    Level,
    Module,
    Record,
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
from ...ir.operations import Call, build, flatten, is_packing, read, regroup, results_of
from ...ir.pipelined_module import MICROBATCH
from ...ir.placement import Mesh, Partial, Placement, Reduce, Replicate, Shard
from ...ir.types import TensorType, axis_text, element_bytes, from_mlir, is_tensor, to_mlir
from ..base import Pass, Remark, RemarkKind, Report
from ..counted_remarks import Tally
from ..normalize.cast_gradients import CAST, dtype_name
from ..plan_effects import activations_key
from ..policy import Policy
from ..rewriting import producer
from .choice import Choice, Operand, Output, cheapest_source, choose
from .rules.ir_calls import rules_of
from .rules.views import TABLE as VIEWS
from .time_axis import Crossing, crossing, has_time, refusal

_FOLLOWS_WEIGHT = ("t.", "transpose.", "permute.", "view.", "reshape.", "_to_copy.", "expand.", "detach.", "alias.")
_OWNERS = {"gradient": ("parameter", "input"), "buffer": ("buffer",)}
"""The kinds of arguments one of which has the name of a result of each kind."""


@dataclass
class _Tracked:
    """A value of the old function: the copies of it in the new one, each with its placement; the first is the main."""

    type: TensorType
    copies: dict[Placement, Value]
    is_weight: bool = False
    is_early: bool = False
    """Whether it depends on no parameter, so that it can be there before any microbatch runs."""
    late: Operation | None = None
    """What first needed a sum over all microbatches that it depends on; None where it depends on none."""


@dataclass(frozen=True)
class _Signature:
    """What a function is specialised by."""

    name: str
    placements: tuple[Placement | None, ...]
    weights: tuple[bool, ...]
    early: tuple[bool, ...]
    """For each argument, as of `_Tracked`; all False where there is no axis of time."""


@dataclass(frozen=True)
class _Specialised:
    name: str
    results: tuple[Type, ...]
    early: tuple[bool, ...]


@dataclass(frozen=True)
class PropagatePlacements(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "propagate-placements"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})
    delay_reductions: bool = False
    """Leave the parameters' gradients as the ranks' addends: whoever takes them sums them, several steps' at once."""

    def run(self, module: Module) -> Report:
        made = module.successor()
        state = _State(module, made, Policy.of(module), self.delay_reductions)
        main = module.functions()["main"]
        placements = tuple(from_mlir(a.type).placement_on(module.mesh) for a in entry(main).arguments)
        weights = tuple(record.get("kind") == "parameter" for record in argument_records(main))
        early = tuple(has_time(module.mesh) and not is_weight for is_weight in weights)
        state.specialise(_Signature("main", placements, weights, early))
        module.become(made)
        return Report(state.moved, (*state.remarks, *state.moves.remarks()), state.effects())


@dataclass
class _State:
    """What one run knows: the old and the new module, and the functions that were specialised so far."""

    old: Module
    new: Module
    policy: Policy
    delay_reductions: bool
    done: dict[_Signature, _Specialised] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    taken: set[str] = field(init=False)
    """Names of functions, old and new."""
    remarks: list[Remark] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)
    moved: int = 0
    moves: Tally = field(default_factory=lambda: Tally(PropagatePlacements.name))
    scattered: set[str] = field(default_factory=set)
    """The axes over which sums were scattered because the plan shards activations there."""

    def count_move(self, type_: TensorType, source: Placement, target: Placement, loc: Location) -> None:
        """Count a value that is brought from one placement to another."""
        self.moved += 1
        wanted = self.policy.scatter_dims(type_)
        for axis, _ in self.new.mesh:
            ours, theirs = source.on(axis), target.on(axis)
            if ours != theirs:
                over = "microbatches" if axis == MICROBATCH else axis
                change = f"{axis_text(ours)} to {axis_text(theirs)} over {over}"
                self.moves.applied(change, from_location(loc))
            if isinstance(ours, Partial) and isinstance(theirs, Shard) and (axis, theirs.dim) in wanted:
                self.scattered.add(axis)

    def effects(self) -> dict[str, str]:
        """By key of the statements about activations: why nothing was cut; empty where something was."""
        leading = ", ".join(str(extent) for extent in self.policy.leading)
        why = f"no sum of shape ({leading}, ...) is left to reduce over {{axis}}, and only such sums are scattered"
        return {
            activations_key(axis): "" if axis in self.scattered else why.format(axis=f'"{axis}"')
            for axis, _ in self.policy.activations
            if dict(self.new.mesh)[axis] > 1
        }

    def __post_init__(self) -> None:
        self.taken = set(self.old.functions())

    def _name(self, name: str) -> str:
        """The function's own name for its first copy, then the name with a number that no function has."""
        number = self.counts.get(name, 0)
        fresh = name
        while number and fresh in self.taken:
            fresh, number = f"{name}_{number}", number + 1
        self.counts[name] = max(number, 1)
        self.taken.add(fresh)
        return fresh

    def specialise(self, signature: _Signature) -> _Specialised:
        """The copy of a function for these argument placements, made at its first use."""
        if signature not in self.done:
            name = self._name(signature.name)
            self.done[signature] = _Body(self, signature, name).rewrite()
        return self.done[signature]


class _Body:
    """The rewrite of one function for one combination of argument placements."""

    def __init__(self, state: _State, signature: _Signature, name: str) -> None:
        self.state = state
        self.mesh: Mesh = state.new.mesh
        self.has_time = has_time(self.mesh)
        self.name = name
        self.old = state.old.functions()[signature.name]
        self.tracked: dict[Value, _Tracked] = {}
        types = [
            to_mlir(from_mlir(a.type).placed(p, self.mesh)) if p is not None else a.type
            for a, p in zip(entry(self.old).arguments, signature.placements, strict=True)
        ]
        records = argument_records(self.old) if name == "main" else None
        self.new = build_function(state.new, name, types, records=records)
        arguments = zip(entry(self.old).arguments, entry(self.new).arguments, strict=True)
        for (old, new), weight, early in zip(arguments, signature.weights, signature.early, strict=True):
            self._track(old, new, weight, early)
        self.kept: set[Value] = set()
        self.targets = self._gradient_targets(records) if records is not None else {}
        self.delayed = self._delayed_gradients() if self.targets else frozenset()
        self.wanted = _with_addends(self.targets)

    def rewrite(self) -> _Specialised:
        with context(), mlir.InsertionPoint(entry(self.new)):
            for op in list(operations(self.old))[:-1]:
                self._rewrite(op)
            results = self._returned()
        finish_function(self.new, results, result_records(self.old) if self.name == "main" else None)
        returned = [self.tracked[v] for v in terminator(self.old).operands]
        return _Specialised(self.name, tuple(v.type for v in results), tuple(t.is_early for t in returned))

    def _rewrite(self, op: Operation) -> None:
        name = callee(op)
        if name is not None:
            self._rewrite_call(op, name)
        elif not is_packing(op):
            self._rewrite_operation(op)
        for result in flatten(results_of(op)):
            if result in self.targets and result in self.tracked:
                self._commit(result, self._move(result, self._target(result), op, is_last=True))

    def _rewrite_operation(self, op: Operation) -> None:
        call = read(op)
        if call is None:
            raise RuntimeError(f"propagate-placements met an operation it does not know: {op}")
        values = call.values()
        results = results_of(op)
        flat = flatten(results)
        if flat[0] in self.kept:
            self._keep(call, op)
            return
        types = [from_mlir(r.type) if is_tensor(r.type) else None for r in flat]
        rules = rules_of(call, types)
        if not rules.known:
            self._remark_unknown(call, op, values)
        output_bytes = max((element_bytes(t) for t in types if t is not None), default=0)
        operands = [self._operand(v, output_bytes, call.name in VIEWS) for v in values]
        outputs = [
            None if t is None else Output(len(t.shape), element_bytes(t), self.wanted.get(r))
            for r, t in zip(flat, types, strict=True)
        ]
        choice = choose(operands, rules, outputs, self.mesh)
        moved = [self._move(v, p, op) for v, p in zip(values, choice.inputs, strict=True)]
        early, late = self._in_time(op, values, choice)
        placed = [
            to_mlir(t.placed(p, self.mesh)) if t is not None and p is not None else r.type
            for r, t, p in zip(flat, types, choice.outputs, strict=True)
        ]
        made = build(call.replace_values(moved), regroup(results, placed), op.location)
        weight = len(values) == 1 and self.tracked[values[0]].is_weight and _follows_weight(call.name)
        for old, new in zip(flat, flatten(made), strict=True):
            self._track(old, new, weight, early, late)

    def _in_time(self, op: Operation, values: Sequence[Value], choice: Choice) -> tuple[bool, Operation | None]:
        """Whether an operation's results are early, and what makes them late.

        Raises E0403 where it takes statistics of all microbatches, or a microbatch needs what is there only late.
        """
        if not self.has_time:
            return False, None
        tracked = [self.tracked[v] for v in values]
        early, late = all(t.is_early for t in tracked), next((t.late for t in tracked if t.late is not None), None)
        row = dict(choice.rows)[MICROBATCH]
        if row.lowering is not None:
            raise refusal(op, Crossing.STATISTICS)
        if late is not None and not all(isinstance(p, Replicate | None) for p in (*row.inputs, *row.outputs)):
            raise refusal(late, Crossing.SUM)
        return early, late

    def _keep(self, call: Call, op: Operation) -> None:
        """A gradient that is cast to be reduced is cast where it lies: sums stay the ranks' addends."""
        [value] = call.values()
        placement, copy = next(iter(self.tracked[value].copies.items()))
        type_ = from_mlir(op.results[0].type).placed(placement, self.mesh)
        [made] = build(call.replace_values([copy]), [to_mlir(type_)], op.location)
        tracked = self.tracked[value]
        self._track(op.results[0], made, early=tracked.is_early, late=tracked.late)

    def _rewrite_call(self, op: Operation, name: str) -> None:
        operands = []
        for value in op.operands:
            tracked = self.tracked[value]
            placement = next(iter(tracked.copies))
            if tracked.late is not None:
                raise refusal(tracked.late, Crossing.SUM)
            if placement.partial and not self._stays_partial(tracked, placement):
                placement = self._reduced(tracked.type, placement)
            operands.append(self._move(value, placement, op))
        placements = tuple(from_mlir(v.type).placement_on(self.mesh) if is_tensor(v.type) else None for v in operands)
        weights = tuple(self.tracked[v].is_weight for v in op.operands)
        early = tuple(self.tracked[v].is_early for v in op.operands)
        target = self.state.specialise(_Signature(name, placements, weights, early))
        results = build_call(target.name, operands, list(target.results), op.location)
        for old, new, is_early in zip(op.results, results, target.early, strict=True):
            self._track(old, new, early=is_early)

    def _stays_partial(self, tracked: _Tracked, placement: Placement) -> bool:
        """Whether a function is given a partial value as it is: its sum over microbatches is not there yet."""
        return isinstance(placement.on(MICROBATCH), Partial) and not tracked.is_early

    def _returned(self) -> list[Value]:
        values = list(terminator(self.old).operands)
        if self.name != "main":
            return [next(iter(self.tracked[v].copies.values())) for v in values]
        last = terminator(self.old)
        found = []
        for value, record in zip(values, result_records(self.old), strict=True):
            tracked = self.tracked[value]
            placement = next(iter(tracked.copies))
            is_given = value in self.targets
            target = (
                self._target(value)
                if is_given
                else self.state.policy.output(record, tracked.type, placement, self.mesh)
            )
            found.append(self._move_out_of_time(value, target, last))
        return found

    def _move_out_of_time(self, value: Value, target: Placement, last: Operation) -> Value:
        """A result of main where it has to be; what microbatches hold of it is joined first, by itself."""
        placement = next(iter(self.tracked[value].copies))
        if isinstance(placement.on(MICROBATCH), Shard) and target.on(MICROBATCH) == Replicate():
            by_axis = {axis: placement.on(axis) for axis, _ in self.mesh if axis != MICROBATCH}
            self._move(value, Placement.of(len(placement.dims), by_axis, self.mesh), last, is_last=True)
        return self._move(value, target, last, is_last=True)

    def _target(self, value: Value) -> Placement:
        """Where a gradient or updated buffer has to be, given where it is: a delayed gradient stays partial."""
        target = self.targets[value]
        if value not in self.delayed:
            return target
        placement = next(iter(self.tracked[value].copies))
        by_axis = {axis: target.on(axis) for axis, _ in self.mesh}
        partial = [axis for axis, reduce in placement.partial if reduce is Reduce.SUM and axis != MICROBATCH]
        by_axis.update(dict.fromkeys(partial, Partial()))
        return Placement.of(len(target.dims), by_axis, self.mesh)

    def _gradient_targets(self, records: Sequence[Record]) -> dict[Value, Placement]:
        """Where each gradient and each updated buffer has to be: as the argument that it belongs to."""
        arguments = entry(self.new).arguments
        placed = {
            (r.get("kind"), r.get("name")): from_mlir(a.type).placement_on(self.mesh)
            for r, a in zip(records, arguments, strict=True)
        }
        values = terminator(self.old).operands
        found = {}
        for value, record in zip(values, result_records(self.old), strict=True):
            owners = [(kind, record.get("name")) for kind in _OWNERS.get(str(record.get("kind")), ())]
            if owners:
                found[value] = next(placed[owner] for owner in owners if owner in placed)
            if "reduce" in record:
                # A delayed gradient waits, and is reduced, as what it is in the end.
                reduced = value if self.state.delay_reductions else _reduced_in(value, str(record["reduce"]))
                found[reduced] = found[value]
                self.kept.update(v for v in _with_addends({reduced: found[value]}) if _is_cast(v))
        return found

    def _delayed_gradients(self) -> frozenset[Value]:
        if not self.state.delay_reductions:
            return frozenset()
        parameters = {r.get("name") for r in argument_records(self.old) if r.get("kind") == "parameter"}
        pairs = zip(terminator(self.old).operands, result_records(self.old), strict=True)
        return frozenset(v for v, r in pairs if r.get("kind") == "gradient" and r.get("name") in parameters)

    def _operand(self, value: Value, output_bytes: int = 0, is_viewed: bool = False) -> Operand:
        tracked = self.tracked[value]
        nbytes = element_bytes(tracked.type)
        return Operand(
            placements=tuple(tracked.copies),
            nbytes=nbytes,
            is_weight=tracked.is_weight,
            is_broadcast=nbytes < output_bytes,
            is_viewed=is_viewed,
            is_zero=_is_zero(value),
            scatter_dims=self.state.policy.scatter_dims(tracked.type),
            is_early=tracked.is_early or value in self.wanted,
            is_drawn=_is_drawn(next(iter(tracked.copies.values()))),
        )

    def _reduced(self, type_: TensorType, placement: Placement) -> Placement:
        """The placement after its partial axes are reduced, onto shards where the plan shards activations."""
        by_axis = {axis: placement.on(axis) for axis, _ in self.mesh}
        scatter = dict(self.state.policy.scatter_dims(type_))
        for axis, _ in placement.partial:
            by_axis[axis] = self.state.policy.reduced_to(axis, scatter)
        return Placement.of(len(placement.dims), by_axis, self.mesh)

    def _move(self, value: Value, target: Placement, op: Operation, *, is_last: bool = False) -> Value:
        """The copy of `value` at `target`, made by a `comm.reshard` if it is not there yet.

        `is_last`: it is a result of the step there. Raises E0403 for a move over microbatches that cannot be.
        """
        tracked = self.tracked[value]
        if target in tracked.copies:
            return tracked.copies[target]
        operand = self._operand(value)
        source = list(tracked.copies)[cheapest_source(operand, target, self.mesh)]
        type_ = to_mlir(tracked.type.placed(target, self.mesh))
        copy = tracked.copies[source]
        if self.has_time and not _is_drawn(copy):
            self._cross(tracked, source, target, op, is_last)
        loc = _cause(copy, op) if source.partial else op.location
        [moved] = build(Call("comm.reshard", (copy,)), [type_], loc)
        self.state.count_move(tracked.type, source, target, loc)
        if source.partial and not target.partial:
            self._commit(value, moved)
        elif not target.partial:
            # What is drawn can be made anywhere: it is made where it is used, and nothing keeps it anywhere else.
            tracked.copies = {target: moved} if _is_drawn(copy) else {**tracked.copies, target: moved}
        return moved

    def _cross(self, tracked: _Tracked, source: Placement, target: Placement, op: Operation, is_last: bool) -> None:
        """Note what is moved over microbatches, or raise E0403 for what cannot be."""
        why = crossing(source, target)
        if why is None or (tracked.is_early and why is Crossing.SUM):
            return
        is_sum = why is Crossing.SUM and target.on(MICROBATCH) == Replicate() and self.name == "main"
        if not (is_sum or is_last):
            raise refusal(op, why)
        tracked.late = op

    def _commit(self, value: Value, moved: Value) -> None:
        """Use `moved` instead of every partial copy from now on."""
        tracked = self.tracked[value]
        kept = {p: v for p, v in tracked.copies.items() if not p.partial}
        target = from_mlir(moved.type).placement_on(self.mesh)
        tracked.copies = {target: moved, **kept}

    def _track(
        self, old: Value, new: Value, is_weight: bool = False, early: bool = False, late: Operation | None = None
    ) -> None:
        if is_tensor(new.type):
            type_ = from_mlir(new.type)
            bare = TensorType(type_.dtype, type_.shape)
            self.tracked[old] = _Tracked(bare, {type_.placement_on(self.mesh): new}, is_weight, early, late)

    def _remark_unknown(self, call: Call, op: Operation, values: Sequence[Value]) -> None:
        """Say once that an operation has no rule; raises E0403 where it would need microbatches gathered."""
        if any(isinstance(p.on(MICROBATCH), Shard) for v in values for p in self.tracked[v].copies):
            raise refusal(op, Crossing.NO_RULE)
        origin = from_location(op.location)
        key = f"{call.name} {origin.module_path}"
        if key not in self.state.unknown:
            self.state.unknown.add(key)
            message = f'"{call.name}" has no sharding rule: its operands are gathered and every rank computes it'
            self.state.remarks.append(Remark("propagate-placements", RemarkKind.MISSED, message, origin))


def _is_drawn(value: Value) -> bool:
    call = producer(value)
    return call is not None and call.name == "nn.random"


def _reduced_in(value: Value, dtype: str) -> Value:
    """The gradient as it is reduced: what its last cast takes, where that is of the dtype that its record names."""
    if _is_cast(value) and dtype_name(from_mlir(value.type).dtype) != dtype:
        [operand] = value.owner.operands
        return operand
    return value


def _is_cast(value: Value) -> bool:
    call = producer(value)
    return call is not None and call.name == CAST


def _with_addends(targets: Mapping[Value, Placement]) -> dict[Value, Placement]:
    """The targets, and the same for what each is cast from or is the sum of (a tied weight's gradients)."""
    found = dict(targets)
    waiting = list(targets)
    while waiting:
        value = waiting.pop()
        call = producer(value)
        if call is not None and call.name in ("aten.add.Tensor", CAST):
            same = call.name == CAST
            addends = [v for v in call.values() if (same or v.type == value.type) and v not in found]
            found.update(dict.fromkeys(addends, found[value]))
            waiting += addends
    return found


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


def _follows_weight(name: str) -> bool:
    return name.removeprefix("aten.").startswith(_FOLLOWS_WEIGHT)
