"""Where main's gradients and updated buffers have to be, and which values are reduced to get there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...ir.bindings import Operation, Value
from ...ir.module import Record, result_records, terminator
from ...ir.pipelined_module import MICROBATCH
from ...ir.placement import Mesh, Partial, Placement, Reduce
from ...ir.types import from_mlir
from ..normalize.cast_gradients import CAST, dtype_name
from ..rewriting import producer

_OWNERS = {"gradient": ("parameter", "input"), "buffer": ("buffer",)}
"""The kinds of arguments one of which has the name of a result of each kind."""


@dataclass(frozen=True)
class GradientTargets:
    """The placements that some values of main are brought to where they are made."""

    placements: Mapping[Value, Placement]
    """Of each gradient (as what is reduced, where that is cast afterwards) and each updated buffer."""
    with_sources: Mapping[Value, Placement]
    """The same, and for what each is cast from or is the sum of."""
    kept: frozenset[Value]
    """Gradients that are cast in order to be reduced: the cast leaves them partial."""
    delayed: frozenset[Value]
    """Gradients of parameters that stay partial, for a caller who sums them."""

    def placement(self, value: Value, present: Placement, mesh: Mesh) -> Placement:
        """Where a value has to be, given where it is."""
        target = self.placements[value]
        if value not in self.delayed:
            return target
        by_axis = {axis: target.on(axis) for axis, _ in mesh}
        partial = [axis for axis, reduce in present.partial if reduce is Reduce.SUM and axis != MICROBATCH]
        by_axis.update(dict.fromkeys(partial, Partial()))
        return Placement.of(len(target.dims), by_axis, mesh)


NO_TARGETS = GradientTargets({}, {}, frozenset(), frozenset())
"""Those of a function that is not main."""


def gradient_targets(
    main: Operation, arguments: Sequence[tuple[Record, Placement]], *, delay_reductions: bool
) -> GradientTargets:
    """Each gradient and each updated buffer goes to the placement of the argument that it belongs to."""
    placed = {(record.get("kind"), record.get("name")): placement for record, placement in arguments}
    results = list(zip(terminator(main).operands, result_records(main), strict=True))
    found: dict[Value, Placement] = {}
    kept: set[Value] = set()
    for value, record in results:
        owners = [(kind, record.get("name")) for kind in _OWNERS.get(str(record.get("kind")), ())]
        if owners:
            found[value] = next(placed[owner] for owner in owners if owner in placed)
        if "reduce" in record:
            # A delayed gradient waits, and is reduced, as what it is in the end.
            reduced = value if delay_reductions else _reduced_in(value, str(record["reduce"]))
            found[reduced] = found[value]
            kept.update(v for v in _with_sources({reduced: found[value]}) if _is_cast(v))
    parameters = {record.get("name") for record, _ in arguments if record.get("kind") == "parameter"}
    gradients = (v for v, record in results if record.get("kind") == "gradient" and record.get("name") in parameters)
    delayed = frozenset(gradients if delay_reductions else ())
    return GradientTargets(found, _with_sources(found), frozenset(kept), delayed)


def _reduced_in(value: Value, dtype: str) -> Value:
    """The gradient as it is reduced: what its last cast takes, where that is of the dtype that its record names."""
    if _is_cast(value) and dtype_name(from_mlir(value.type).dtype) != dtype:
        [operand] = value.owner.operands
        return operand
    return value


def _is_cast(value: Value) -> bool:
    call = producer(value)
    return call is not None and call.name == CAST


def _with_sources(targets: Mapping[Value, Placement]) -> dict[Value, Placement]:
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
