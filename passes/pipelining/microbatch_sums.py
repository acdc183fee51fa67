"""Reductions over microbatches in the entry of one coordinate: sums are accumulated task by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce

from ...ir.bindings import Location, Value
from ...ir.collectives import ALL_GATHER, ALL_REDUCE
from ...ir.operations import Call, build
from ...ir.pipelined_module import MICROBATCH
from ..graph import Node
from .messages import MicrobatchValue
from .microbatch_analysis import concatenated, without_microbatch_axis

_COMBINED = {"sum": "aten.add.Tensor", "max": "aten.maximum.default", "min": "aten.minimum.default"}
"""The operation that combines the values of two microbatches, by reduction."""


@dataclass
class MicrobatchSums:
    """`reductions`: the values that collectives reduce over microbatches, and by which reduction."""

    reductions: Mapping[Value, str]
    microbatches: int
    totals: dict[Value, Value] = field(default_factory=dict)
    """The running totals."""

    @staticmethod
    def of(joins: Sequence[Node], microbatches: int) -> MicrobatchSums:
        """For the collectives over microbatches that come after their tasks; other nodes are ignored."""
        sums = {n.operands[0]: n.call.args[2] for n in joins if n.call is not None and n.name == ALL_REDUCE}
        return MicrobatchSums(sums, microbatches)

    def add(self, node: Node, microbatch: int, microbatch_values: Mapping[MicrobatchValue, Value]) -> None:
        """Accumulate the results of a node for one microbatch."""
        for value in node.values:
            reduction = self.reductions.get(value)
            if reduction is not None:
                total, value_of_microbatch = self.totals.get(value), microbatch_values[value, microbatch]
                self.totals[value] = (
                    value_of_microbatch
                    if total is None
                    else _combined(reduction, node.op.location, total, value_of_microbatch)
                )

    def join(self, node: Node, parts_of: Callable[[Value], list[Value]]) -> Value:
        """The result of a collective over microbatches: over them first, then over its other axes."""
        assert node.call is not None
        value, axes, option = node.call.args
        [result] = node.values
        loc = node.op.location
        other_axes = [axis for axis in axes if axis != MICROBATCH]
        if node.name == ALL_GATHER:
            type_ = (
                concatenated(without_microbatch_axis(value.type), option, self.microbatches)
                if other_axes
                else result.type
            )
            [joined] = build(Call("aten.cat.default", (parts_of(value), option)), [type_], loc)
        else:
            running_total = self.totals.get(value)
            total = reduce(partial(_combined, option, loc), parts_of(value)) if running_total is None else running_total
            type_ = without_microbatch_axis(value.type) if other_axes else result.type
            [joined] = build(Call("aten.alias.default", (total,)), [type_], loc)
        if other_axes:
            [joined] = build(Call(node.name, (joined, other_axes, option)), [result.type], loc)
        return joined


def _combined(reduction: str, loc: Location, a: Value, b: Value) -> Value:
    """The values of two microbatches, reduced."""
    [combined] = build(Call(_COMBINED[reduction], (a, b)), [a.type], loc)
    return combined
