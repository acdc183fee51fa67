"""Choosing how one op runs on each mesh axis: the legal row that moves the fewest bytes from where its operands are.

Costs are bytes per rank. The order of preference that the numbers encode: leave things where they are; move
activations, never weights; finish partial sums by an all-reduce, or by a reduce-scatter where the plan shards
activations; cut a replicated operand only to meet a sharded one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, prod

from ...ir.pipelined_module import MICROBATCH
from ...ir.placement import AxisPlacement, Mesh, Partial, Placement, Replicate, Shard
from .rules.strategy import Row, Rules
from .time_axis import COUPLES, mixes_rows, repeated, time_cost

_CUT = 1e-3
"""Cost of cutting a replicated operand, per byte: nothing moves, but what follows may have to be gathered."""
_ADDEND = 2e-3
"""Cost of making a replicated broadcast operand (a bias) one addend of a partial sum, per byte."""
_LATER = 0.999
"""What a reduction put off costs of one made now: where they are the same size, the later one may meet its user."""
_WEIGHT = 1e3
"""How many times dearer it is to move a weight than an activation of the same size."""


@dataclass(frozen=True)
class Operand:
    """One tensor operand: where copies of it are, and what it would cost to move."""

    placements: tuple[Placement, ...]
    """The placements in which the value is there already."""
    nbytes: int
    """Bytes of the whole tensor."""
    is_weight: bool
    is_broadcast: bool
    """Whether it has fewer elements than the op's result."""
    is_viewed: bool = False
    """Whether the op only views it: moves elements about, and computes nothing."""
    is_zero: bool = False
    """Whether all its elements are known to be zero: then it is an addend of any sum."""
    scatter_dims: tuple[tuple[str, int], ...] = ()
    """(axis, dim): where the plan wants a partial result of this shape reduce-scattered."""
    is_early: bool = False
    """Whether its sum over microbatches is there before they run, or is wanted only when all have run."""
    is_drawn: bool = False
    """Whether it is drawn, so that any part of it can be made anywhere."""
    is_late: bool = False
    """Whether it is there only when all microbatches have run."""


@dataclass(frozen=True)
class Output:
    """One result: how many dims and bytes the whole tensor has, and where it will have to be, if that is known."""

    rank: int
    nbytes: int
    target: Placement | None = None


@dataclass(frozen=True)
class Choice:
    """How an op runs: the placement of each operand and of each output, and the row chosen on each axis."""

    inputs: tuple[Placement, ...]
    outputs: tuple[Placement | None, ...]
    rows: tuple[tuple[str, Row], ...]


def transition_cost(operand: Operand, axis: str, size: int, source: AxisPlacement, target: AxisPlacement) -> float:
    """Bytes each rank sends to move `operand` along one axis from one placement to another; inf where impossible.

    What only views the operand does not exchange the sharded dim for another: it would decide, for the sake of no
    computation, what its users compute on.
    """
    if axis == MICROBATCH:
        return time_cost(operand.nbytes, source, target, early=operand.is_early, free=operand.is_drawn)
    if source == target:
        return 0.0
    size = max(size, 2)  # one rank decides as two would, so that it agrees with other axes
    share = operand.nbytes * (size - 1) / size
    weight = _WEIGHT if operand.is_weight else 1.0
    match source, target:
        case Replicate(), Shard():
            return _CUT * operand.nbytes
        case Replicate(), Partial():
            return _ADDEND * operand.nbytes if operand.is_broadcast or operand.is_zero else inf
        case Shard(), Replicate():
            return weight * share
        case Shard(), Shard():
            exchanged = share if operand.is_viewed else share / size
            return weight * exchanged + _CUT * operand.nbytes
        case Partial(), Replicate():
            return weight * 2 * share
        case Partial(), Shard(dim):
            wanted = (axis, dim) in operand.scatter_dims
            return weight * (share if wanted else 2 * share + _CUT * operand.nbytes)
        case _:
            return inf


def choose(
    operands: Sequence[Operand],
    rules: Rules,
    outputs: Sequence[Output | None],
    mesh: Mesh,
) -> Choice:
    """The cheapest legal row on each axis, decided axis by axis; ties go to the earlier row.

    First comes time, over which the least can move, then the others in mesh order.
    """
    picked: list[tuple[str, Row]] = []
    for axis, size in sorted(mesh, key=lambda each: each[0] != MICROBATCH):
        in_time = picked[0][1] if picked and picked[0][0] == MICROBATCH else None

        def cost(row: Row, axis: str = axis, size: int = size, in_time: Row | None = in_time) -> float:
            if not _legal(row, axis, picked, mesh):
                return inf
            moves = 0.0
            for i, (o, target) in enumerate(zip(operands, row.inputs, strict=True)):
                there = None if in_time is None else in_time.inputs[i]
                moves += min(
                    transition_cost(o, axis, size, p.on(axis), target) * repeated(p, axis, target, there)
                    + (COUPLES if not o.is_drawn and mixes_rows(p, axis, target, there) else 0.0)
                    for p in o.placements
                )
            if axis == MICROBATCH and row.lowering is not None:
                moves += COUPLES / 2  # of all that cannot be, this says the most
            return moves + _deferred(outputs, row, axis, size)

        rows = _once(operands, rules.rows) if axis == MICROBATCH else rules.rows
        picked.append((axis, _cheapest(rows, cost)))
    ranks = [len(o.placements[0].dims) for o in operands]
    inputs = tuple(
        Placement.of(rank, {axis: row.inputs[i] for axis, row in picked}, mesh) for i, rank in enumerate(ranks)
    )
    made = tuple(
        None if out is None else Placement.of(out.rank, _outputs(picked, i), mesh) for i, out in enumerate(outputs)
    )
    return Choice(inputs, made, tuple(picked))


def cheapest_source(operand: Operand, target: Placement, mesh: Mesh) -> int:
    """Which of the operand's copies reaches `target` at the least cost; its index."""

    def cost(placement: Placement) -> float:
        return sum(transition_cost(operand, a, n, placement.on(a), target.on(a)) for a, n in mesh)

    costs = [cost(p) for p in operand.placements]
    return costs.index(min(costs))


def _cheapest(rows: Sequence[Row], cost: Callable[[Row], float]) -> Row:
    costs = [cost(row) for row in rows]
    return rows[costs.index(min(costs))]


def _once(operands: Sequence[Operand], rows: Sequence[Row]) -> Sequence[Row]:
    """The rows to choose from over time: what takes a late value runs once, when the sums it takes are there too.

    So `(a + 0) + b` of two losses adds their sums. Where an operand is cut into microbatches all rows stay: each is
    refused, for the sum that comes too late.
    """
    is_cut = any(isinstance(p.on(MICROBATCH), Shard) for o in operands for p in o.placements)
    if is_cut or not any(o.is_late for o in operands):
        return rows
    return [row for row in rows if all(isinstance(p, Replicate | None) for p in (*row.inputs, *row.outputs))]


def _deferred(outputs: Sequence[Output | None], row: Row, axis: str, size: int) -> float:
    """What the row's outputs will cost later: partial ones made of partial operands, and those that must be shards."""
    taken = any(isinstance(p, Partial) for p in row.inputs)
    later = 0.0
    for output, placement in zip(outputs, row.outputs, strict=True):
        if output is None or placement is None:
            continue
        target = output.target.on(axis) if output.target is not None else None
        if isinstance(target, Shard):
            later += transition_cost(_made(output, axis, target.dim), axis, size, placement, target)
        elif taken and isinstance(placement, Partial):
            later += 2 * output.nbytes * (size - 1) / size
    return _LATER * later


def _made(output: Output, axis: str, dim: int) -> Operand:
    """The output as what moves it will see: a value that is wanted sharded on `dim`."""
    return Operand((), output.nbytes, is_weight=False, is_broadcast=False, scatter_dims=((axis, dim),))


def _outputs(picked: Sequence[tuple[str, Row]], index: int) -> dict[str, AxisPlacement]:
    return {axis: row.outputs[index] or Replicate() for axis, row in picked}


def _legal(row: Row, axis: str, picked: Sequence[tuple[str, Row]], mesh: Mesh) -> bool:
    """Whether the row holds beside the rows picked on earlier axes: chunks nested on one dim, one lowering an op."""
    sizes = dict(mesh)
    if row.lowering is not None and any(_clashes(row, other) for _, other in picked):
        return False
    parts = {sizes[axis]}
    for i, placement in enumerate(row.inputs):
        if isinstance(placement, Shard):
            same = [a for a, other in picked if other.inputs[i] == placement]
            parts.add(prod(sizes[a] for a in same) * sizes[axis])
    return all(row.legal(n) for n in parts)


def _clashes(row: Row, other: Row) -> bool:
    return other.lowering is not None and other != row
