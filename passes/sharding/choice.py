"""Choose how one op runs on each mesh axis: the legal strategy that moves the fewest bytes.

Costs are bytes per rank; what the numbers prefer is said where they stand (`costs/placements.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, prod

from ...costs.communication import sent_bytes
from ...costs.placements import DEFERRED, MIXES_MICROBATCHES, microbatch_move_cost, move_cost
from ...ir.pipelined_module import MICROBATCH
from ...ir.placement import AxisPlacement, Mesh, Partial, Placement, Replicate, Shard
from .attention_methods import fitting, nested_inside
from .microbatch_axis import changes_microbatches, repeat_factor
from .rules.strategy import Lowering, OpStrategies, Strategy

_OF_SEVERAL_DIMS = (Lowering.EXCHANGE, Lowering.HALO, Lowering.STATISTICS)
"""Lowerings that axes may have together, whichever dims they cut."""


@dataclass(frozen=True)
class Operand:
    """One tensor operand: the placements of its copies, and what decides the cost of a reshard."""

    placements: tuple[Placement, ...]
    """The placements in which a copy of the value exists already."""
    nbytes: int
    """Bytes of the whole tensor."""
    is_weight: bool
    is_broadcast: bool
    """Whether it has fewer elements than the op's result."""
    is_viewed: bool = False
    """Whether the op is a view of it: it moves elements and computes nothing."""
    is_zero: bool = False
    """Whether all its elements are known to be zero: then it may be partial without communication."""
    scatter_dims: tuple[tuple[str, int], ...] = ()
    """(axis, dim): where the plan has a partial result of this shape reduce-scattered."""
    is_early: bool = False
    """Whether its sum over microbatches is known before they run, or is needed only when all have run."""
    is_drawn: bool = False
    """Whether a random op makes it, so that every rank can draw any part of it."""
    is_late: bool = False
    """Whether its value is known only when all microbatches have run, or have run their forwards."""
    never_cut_over: str = ""
    """The pipeline axis, over which no reshard cuts an activation: stages share none. "" for no axis."""

    @property
    def may_be_partial(self) -> bool:
        """Whether one rank may add all of it to a partial sum while the others add zeros."""
        return self.is_broadcast or self.is_zero


@dataclass(frozen=True)
class Output:
    """One result: dims and bytes of the global tensor, and its required placement, if that is known."""

    rank: int
    nbytes: int
    target: Placement | None = None


class Unfit(Exception):
    """No strategy of the method that a plan names for an axis fits the op; the message is the axis."""


@dataclass(frozen=True)
class Choice:
    """How an op runs: the placement of each operand and output, and the strategy chosen on each axis."""

    inputs: tuple[Placement, ...]
    outputs: tuple[Placement | None, ...]
    strategies: tuple[tuple[str, Strategy], ...]


def transition_cost(operand: Operand, axis: str, size: int, source: AxisPlacement, target: AxisPlacement) -> float:
    """The cost of a reshard of `operand` on one axis: over ranks in bytes, or over microbatches."""
    if axis == MICROBATCH:
        return microbatch_move_cost(operand.nbytes, source, target, early=operand.is_early, free=operand.is_drawn)
    if axis == operand.never_cut_over and isinstance(target, Shard) and source != target:
        return inf
    return move_cost(operand, axis, size, source, target)


def choose(
    operands: Sequence[Operand],
    op_strategies: OpStrategies,
    outputs: Sequence[Output | None],
    mesh: Mesh,
    nesting: Placement | None = None,
    methods: Mapping[str, str] | None = None,
) -> Choice:
    """The cheapest legal strategy on each axis, decided axis by axis; ties go to the earlier strategy.

    The microbatch axis comes first, as it allows the fewest reshards, then the others in mesh order. Axes that shard
    the same dim nest alike in all operands and outputs: as in the largest operand that nests them, then as in
    `nesting`. `methods` says which strategies an attention takes on an axis; raises `Unfit` where none of them fits.
    """
    chosen: list[tuple[str, Strategy]] = []
    for axis, size in sorted(mesh, key=lambda axis_size: axis_size[0] != MICROBATCH):
        microbatch_strategy = chosen[0][1] if chosen and chosen[0][0] == MICROBATCH else None

        def cost(
            strategy: Strategy,
            axis: str = axis,
            size: int = size,
            microbatch_strategy: Strategy | None = microbatch_strategy,
        ) -> float:
            if not _legal(strategy, axis, chosen, mesh):
                return inf
            moved_bytes = 0.0
            for i, (o, target) in enumerate(zip(operands, strategy.inputs, strict=True)):
                over_microbatches = None if microbatch_strategy is None else microbatch_strategy.inputs[i]
                moved_bytes += min(
                    transition_cost(o, axis, size, p.on(axis), target)
                    * repeat_factor(p, axis, target, over_microbatches)
                    + (
                        MIXES_MICROBATCHES
                        if not o.is_drawn and changes_microbatches(p, axis, target, over_microbatches)
                        else 0.0
                    )
                    for p in o.placements
                )
            if axis == MICROBATCH and strategy.lowering is not None:
                moved_bytes += MIXES_MICROBATCHES / 2  # the best choice of those refused: its error says the most
            return moved_bytes + _deferred(outputs, strategy, axis, size)

        strategies: Sequence[Strategy] = op_strategies.strategies
        if methods is not None:
            strategies = fitting(strategies, methods.get(axis))
        if axis == MICROBATCH:
            waits = any(o.is_late for o in operands) or cost(_cheapest(strategies, cost)) >= MIXES_MICROBATCHES
            strategies = _after_all_microbatches(operands, strategies) if waits else strategies
        cheapest = _cheapest(strategies, cost)
        if methods and axis in methods and cost(cheapest) == inf:
            raise Unfit(axis)
        chosen.append((axis, cheapest))
    ranks = [len(o.placements[0].dims) for o in operands]
    largest_first = sorted(operands, key=lambda o: -o.nbytes)
    like = [p for o in largest_first for p in o.placements]
    like += nested_inside(methods or {}, mesh)
    like += [] if nesting is None else [nesting]
    inputs = tuple(
        Placement.of(rank, {axis: strategy.inputs[i] for axis, strategy in chosen}, mesh, like)
        for i, rank in enumerate(ranks)
    )
    output_placements = tuple(
        None if out is None else Placement.of(out.rank, _output_placements(chosen, i), mesh, like)
        for i, out in enumerate(outputs)
    )
    return Choice(inputs, output_placements, tuple(chosen))


def cheapest_source(operand: Operand, target: Placement, mesh: Mesh) -> int:
    """The index of the operand's copy that reaches `target` at the least cost."""

    def cost(placement: Placement) -> float:
        return sum(transition_cost(operand, a, n, placement.on(a), target.on(a)) for a, n in mesh)

    costs = [cost(p) for p in operand.placements]
    return costs.index(min(costs))


def _cheapest(strategies: Sequence[Strategy], cost: Callable[[Strategy], float]) -> Strategy:
    costs = [cost(strategy) for strategy in strategies]
    return strategies[costs.index(min(costs))]


def _after_all_microbatches(operands: Sequence[Operand], strategies: Sequence[Strategy]) -> Sequence[Strategy]:
    """The strategies over the microbatch axis of an op that needs the sum over all of them: it runs once.

    So `(a + 0) + b` of two losses adds their sums, and a product of two means takes both whole. Where an operand is
    sharded over microbatches all strategies stay: each is refused, because the sum comes too late.
    """
    is_sharded = any(isinstance(p.on(MICROBATCH), Shard) for o in operands for p in o.placements)
    if is_sharded:
        return strategies
    return [s for s in strategies if all(isinstance(p, Replicate | None) for p in (*s.inputs, *s.outputs))]


def _deferred(outputs: Sequence[Output | None], strategy: Strategy, axis: str, size: int) -> float:
    """What the strategy's outputs will cost later: those still partial, and those that have to be sharded."""
    taken = any(isinstance(p, Partial) for p in strategy.inputs)
    later = 0.0
    for output, placement in zip(outputs, strategy.outputs, strict=True):
        if output is None or placement is None:
            continue
        target = output.target.on(axis) if output.target is not None else None
        if isinstance(target, Shard):
            later += transition_cost(_made(output, axis, target.dim), axis, size, placement, target)
        elif taken and isinstance(placement, Partial):
            later += sent_bytes("all_reduce", output.nbytes, size)
    return DEFERRED * later


def _made(output: Output, axis: str, dim: int) -> Operand:
    """The output as an operand of the reshard to its target, sharded on `dim`."""
    return Operand((), output.nbytes, is_weight=False, is_broadcast=False, scatter_dims=((axis, dim),))


def _output_placements(chosen: Sequence[tuple[str, Strategy]], index: int) -> dict[str, AxisPlacement]:
    return {axis: strategy.outputs[index] or Replicate() for axis, strategy in chosen}


def _legal(strategy: Strategy, axis: str, chosen: Sequence[tuple[str, Strategy]], mesh: Mesh) -> bool:
    """Whether the strategy fits those chosen on earlier axes: chunks nest on one dim, and an op has one lowering."""
    sizes = dict(mesh)
    if strategy.lowering is not None and any(_clashes(strategy, other) for _, other in chosen):
        return False
    if any(_mixes_blocks(strategy, other) for _, other in chosen):
        return False
    parts = {sizes[axis]}
    for i, placement in enumerate(strategy.inputs):
        if isinstance(placement, Shard):
            same_dim_axes = [a for a, other in chosen if other.inputs[i] == placement]
            parts.add(prod(sizes[a] for a in same_dim_axes) * sizes[axis])
    return all(strategy.legal(n) for n in parts)


def _mixes_blocks(strategy: Strategy, other: Strategy) -> bool:
    """Whether the strategies on two axes cut a dim inside different blocks, or one of them as a whole."""
    own, others = (*strategy.inputs, *strategy.outputs), (*other.inputs, *other.outputs)
    return any(
        isinstance(a, Shard) and isinstance(b, Shard) and a.dim == b.dim and a.blocks != b.blocks
        for a, b in zip(own, others, strict=True)
    )


def _clashes(strategy: Strategy, other: Strategy) -> bool:
    if strategy.lowering is other.lowering and strategy.lowering in _OF_SEVERAL_DIMS:
        return False
    return other.lowering is not None and other != strategy
