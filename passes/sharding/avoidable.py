"""Redistributions of activations that another statement of the plan would avoid.

An op takes the cheapest strategy for its weight as the plan cuts it. Where another strategy takes an activation as it
is, the plan can say so: cut the weight by rows, whose result is a partial sum, or by columns, or leave its `shard` out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...ir.locations import Origin
from ...ir.pipelined_module import MICROBATCH
from ...ir.placement import Mesh, Partial, Shard
from ...ir.types import axis_text
from .choice import Choice, Operand
from .rules.strategy import Strategy


def avoidable(
    operands: Sequence[Operand], strategies: Sequence[Strategy], choice: Choice, mesh: Mesh, origin: Origin
) -> Iterator[tuple[str, str]]:
    """(axis, message) of each redistribution of an activation that a `shard` of the op's only matrix would avoid."""
    weights = [i for i, each in enumerate(operands) if each.is_weight and len(each.placements[0].dims) == 2]
    layer = origin.module_path.rpartition(".")[2]
    if len(weights) != 1 or not layer or layer.isdigit() or layer == "*":
        return
    [weight] = weights
    for axis, size in mesh:
        chosen = dict(choice.strategies)[axis]
        for i, operand in enumerate(operands):
            source, target = operand.placements[0].on(axis), chosen.inputs[i]
            moves = all(placement.on(axis) != target for placement in operand.placements)
            if axis == MICROBATCH or operand.is_weight or not moves or not isinstance(source, Shard):
                continue
            kept = [s for s in strategies if s.inputs[i] == source and s.legal(size)]
            for strategy in kept[:1]:
                change = f"its input goes from {axis_text(source)} to {axis_text(target)} over {axis}"
                yield axis, f"{change}; avoided by: {_statement(strategy, weight, layer, axis)}"


def _statement(strategy: Strategy, weight: int, layer: str, axis: str) -> str:
    """What the plan says for a strategy."""
    if not isinstance(strategy.inputs[weight], Shard):
        return f'no shard of "*.{layer}" over {axis}'
    return f'shard "*.{layer}" {"rows" if isinstance(strategy.outputs[0], Partial) else "columns"} over {axis}'
