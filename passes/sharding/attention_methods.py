"""The sharding strategies of attention that a method stands for, on an axis that cuts its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...diagnostics import Span, StrettoError
from ...dsl.attention import Method
from ...ir.attention_methods import ATTENTION, RINGS, STATE, ZIGZAGS
from ...ir.bindings import Operation, Value
from ...ir.locations import from_location
from ...ir.placement import Mesh, Placement, Shard
from .rules.strategy import Lowering, Strategy

HEADS, TOKENS = 1, 2
"""The dims of queries, keys and values."""

_DIMS = {"all_to_all": HEADS, "gather": TOKENS, **dict.fromkeys(RINGS, TOKENS)}
"""By method, the dim of attention's result that the axis shards."""


def fitting(strategies: Sequence[Strategy], method: str | None) -> Sequence[Strategy]:
    """Those of the method; without one, all that need not be asked for."""
    if method == STATE:
        return [each for each in strategies if each.lowering is Lowering.STATE]
    strategies = [each for each in strategies if each.lowering is not Lowering.STATE]
    is_ring, is_zigzag = method in RINGS, method in ZIGZAGS
    asked = [each for each in strategies if (each.lowering is Lowering.RING) == is_ring]
    if method is None:
        return asked
    results = [(each, each.outputs[0]) for each in asked]
    return [
        each
        for each, out in results
        if isinstance(out, Shard) and out.dim == _DIMS[method] and is_zigzag == bool(out.blocks)
    ]


def nested_inside(methods: Mapping[str, str], mesh: Mesh) -> list[Placement]:
    """Placements that nest the axes which move from tokens to heads inside all others.

    So a rank's heads are parts of those that it has by other axes, and one all-to-all moves them.
    """
    moved = [axis for axis, method in methods.items() if method == Method.ALL_TO_ALL]
    return [Placement(((axis, inner),)) for inner in moved for axis, _ in mesh if axis not in moved]


def returned(
    name: str,
    results: Sequence[Value],
    placements: Sequence[Placement | None],
    methods: Mapping[str, str],
    mesh: Mesh,
) -> list[tuple[Value, Placement]]:
    """The results to bring back to tokens right after the op, by an exchange or a reduce-scatter: where to.

    The logsumexp is no such result: the backward alone reads it, as it was made.
    """
    targets = []
    made = list(zip(results, placements, strict=True))
    for value, placement in made[: 1 if name == ATTENTION[0] else None] if methods else []:
        axes = [] if placement is None else placement.dims[TOKENS]
        moved = [axis for axis in methods if axis not in axes]
        if placement is None or not moved:
            continue
        shard = Shard(TOKENS, placement.blocks_of(TOKENS))
        by_axis = {axis: shard if axis in moved else placement.on(axis) for axis, _ in mesh}
        outside = [Placement(((axis, inner),)) for inner in moved for axis in placement.dims[TOKENS]]
        targets.append((value, Placement.of(len(placement.dims), by_axis, mesh, [placement, *outside])))
    return targets


def refused(op: Operation, message: str, expected: str, help: str) -> StrettoError:
    """E0406 for an attention that cannot follow the plan, at its line of the model."""
    origin = from_location(op.location)
    where = f" in {origin.module_path}" if origin.module_path else ""
    span = Span(origin.file, origin.line) if origin.file else None
    return StrettoError("E0406", f"attention{where} {message}", span=span, expected=expected, help=help)


def unfit(op: Operation, axis: str, methods: Mapping[str, str], mesh: Mesh) -> StrettoError:
    """E0406 for a method that does not fit beside what the other axes shard."""
    return refused(
        op,
        f'cannot have the method {methods[axis]} over the {dict(mesh)[axis]} ranks of "{axis}" beside its other axes',
        "expected ranks that divide its heads and tokens, and axes of which one alone keeps the tokens cut",
        f'take another method over "{axis}", or a smaller axis',
    )
