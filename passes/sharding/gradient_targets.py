"""The required placements of main's gradients and updated buffers, and the values that are reduced to get there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ...ir.bindings import Operation, Value, mlir
from ...ir.module import Record, callee, result_records, terminator
from ...ir.pipelined_module import MICROBATCH
from ...ir.placement import Mesh, Partial, Placement, Reduce
from ...ir.types import from_mlir
from ..layers.late_casts import CAST
from ..normalize.cast_gradients import dtype_name
from ..rewriting import producer

_Mark = TypeVar("_Mark")
_OWNERS = {"gradient": ("parameter", "input"), "buffer": ("buffer",)}
"""For each kind of result, the kinds of arguments that a result of that name may belong to."""


@dataclass(frozen=True)
class GradientTargets:
    """Placements to which values of main are resharded right after the op that makes them."""

    placements: Mapping[Value, Placement]
    """Of each gradient (of its value before the last cast, where that is what is reduced) and each updated buffer."""
    with_sources: Mapping[Value, Placement]
    """The computed placement of each, and of the values that it is cast from or is the sum of. It lacks stored axes:
    over these only the final gradient is reduce-scattered, in the dtype that the plan says."""
    partial_casts: frozenset[Value]
    """Casts of gradients before their reduction: they leave the gradient partial."""
    delayed: frozenset[Value]
    """Gradients of parameters that stay unreduced, but over axes of `scattered`; the caller sums them."""
    scattered: Mapping[Value, Sequence[str]] = field(default_factory=dict)
    """Gradients that are reduced for each microbatch, before they are summed over microbatches: the axes over which."""

    def steps(self, value: Value, present: Placement, mesh: Mesh) -> list[Placement]:
        """The placements by which a value comes to the required one, in order."""
        target = self.placement(value, present, mesh)
        if value not in self.scattered or not isinstance(present.on(MICROBATCH), Partial):
            return [target]
        early = self.scattered[value]
        by_axis = {
            axis: present.on(axis) if axis not in early and present.on(axis) == Partial() else target.on(axis)
            for axis, _ in mesh
        }
        each = Placement.of(len(target.dims), {**by_axis, MICROBATCH: Partial()}, mesh, [target])
        return [each, target]

    def placement(self, value: Value, present: Placement, mesh: Mesh) -> Placement:
        """The required placement of a value that now has the placement `present`."""
        target = self.placements[value]
        if value not in self.delayed:
            return target
        by_axis = {axis: target.on(axis) for axis, _ in mesh}
        reduced = (MICROBATCH, *self.scattered.get(value, ()))
        partial = [axis for axis, reduce in present.partial if reduce is Reduce.SUM and axis not in reduced]
        by_axis.update(dict.fromkeys(partial, Partial()))
        return Placement.of(len(target.dims), by_axis, mesh, [target])


NO_TARGETS = GradientTargets({}, {}, frozenset(), frozenset())
"""The targets of a function that is not main: none."""


def gradient_targets(
    main: Operation, arguments: Sequence[tuple[Record, Placement]], *, delay_reductions: bool
) -> GradientTargets:
    """The targets: each gradient and updated buffer gets the placement of the argument that it belongs to."""
    placed = {(record.get("kind"), record.get("name")): placement for record, placement in arguments}
    stored = {(record.get("kind"), record.get("name")): record.get("stored", []) for record, _ in arguments}
    results = list(zip(terminator(main).operands, result_records(main), strict=True))
    targets: dict[Value, Placement] = {}
    computed: dict[Value, Placement] = {}
    partial_casts: set[Value] = set()
    for value, record in results:
        owners = [(kind, record.get("name")) for kind in _OWNERS.get(str(record.get("kind")), ())]
        if owners:
            owner = next(owner for owner in owners if owner in placed)
            targets[value] = placed[owner]
            computed[value] = placed[owner].without(stored[owner])
        if "reduce" in record:
            # A delayed gradient accumulates, and is reduced later, in its final dtype.
            reduced = value if delay_reductions else _reduced_in(value, str(record["reduce"]))
            targets[reduced], computed[reduced] = targets[value], computed[value]
            partial_casts.update(v for v in _with_sources({reduced: targets[value]}) if _is_cast(v))
    parameters = {record.get("name") for record, _ in arguments if record.get("kind") == "parameter"}
    gradients = [(v, record.get("name")) for v, record in results if record.get("kind") == "gradient"]
    delayed = frozenset(v for v, name in gradients if delay_reductions and name in parameters)
    each = {
        record.get("name"): record.get("within") or record["stored"]
        for record, _ in arguments
        if record.get("kind") == "parameter" and record.get("scatter") == "each"
    }
    scattered = {v: each[name] for v, name in gradients if name in each}
    return GradientTargets(targets, _with_sources(computed), frozenset(partial_casts), delayed, scattered)


def targets_in_layers(
    functions: Mapping[str, Operation], arguments: Sequence[tuple[Record, Placement]]
) -> dict[str, GradientTargets]:
    """By folded function, what its gradients will be brought to behind it, and its casts that leave them partial.

    Nothing is brought there inside, but the choice of strategies knows what a partial gradient will cost. A gradient
    that is the sum of a cast product and something else is reduced behind the cast, in the dtype that the plan says, in
    every layer alike.
    """
    main = functions["main"]
    computed = gradient_targets(main, arguments, delay_reductions=False).with_sources
    results = zip(terminator(main).operands, result_records(main), strict=True)
    reduced = [_reduced_in(value, str(record["reduce"])) for value, record in results if "reduce" in record]
    casts: dict[str, set[Value]] = {}
    for name, inner in _results_in_layers(functions, dict.fromkeys(reduced)):
        casts.setdefault(name, set()).update(v for v in _with_sources({inner: None}) if _is_cast(v))
    wanted: dict[str, dict[Value, Placement]] = {}
    for (name, inner), placement in _results_in_layers(functions, computed).items():
        wanted.setdefault(name, {}).update(_with_sources({inner: placement}))
    return {
        name: replace(NO_TARGETS, partial_casts=frozenset(casts.get(name, ())), with_sources=wanted.get(name, {}))
        for name in functions
    }


def _results_in_layers(
    functions: Mapping[str, Operation], marks: Mapping[Value, _Mark]
) -> dict[tuple[str, Value], _Mark]:
    """By function and returned value inside: the mark of what it is in main, over calls in calls too."""
    found: dict[tuple[str, Value], _Mark] = {}
    waiting = list(_with_sources(marks).items())
    while waiting:
        value, mark = waiting.pop()
        name = None if isinstance(value.owner, mlir.Block) else callee(value.owner)
        if name is None:
            continue
        inner = terminator(functions[name]).operands[mlir.OpResult(value).result_number]
        if (name, inner) not in found:
            waiting += _with_sources({inner: mark}).items()
        found.setdefault((name, inner), mark)
    return found


def _reduced_in(value: Value, dtype: str) -> Value:
    """The value of a gradient that is reduced: the operand of its last cast, where that has the dtype of the record."""
    if _is_cast(value) and dtype_name(from_mlir(value.type).dtype) != dtype:
        [operand] = value.owner.operands
        return operand
    return value


def _is_cast(value: Value) -> bool:
    call = producer(value)
    return call is not None and call.name == CAST


def _with_sources(targets: Mapping[Value, _Mark]) -> dict[Value, _Mark]:
    """The targets, and the same for the values that each is cast from or is the sum of (a tied weight's gradients)."""
    with_sources = dict(targets)
    waiting = list(targets)
    while waiting:
        value = waiting.pop()
        call = producer(value)
        if call is not None and call.name in ("aten.add.Tensor", CAST):
            is_cast = call.name == CAST
            operands = [v for v in call.values() if (is_cast or v.type == value.type) and v not in with_sources]
            with_sources.update(dict.fromkeys(operands, with_sources[value]))
            waiting += operands
    return with_sources
