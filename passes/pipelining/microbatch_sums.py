"""Values that join microbatches, in the entry of one coordinate: sums are added up as parts are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce

from ...ir.bindings import Location, Value
from ...ir.collectives import ALL_GATHER, ALL_REDUCE
from ...ir.operations import Call, build
from ...ir.pipelined_module import MICROBATCH
from ..graph import Node
from .messages import Parcel
from .time_axis import grown, without_time

_COMBINED = {"sum": "aten.add.Tensor", "max": "aten.maximum.default", "min": "aten.minimum.default"}
"""The operation that combines two parts, by the reduction."""


@dataclass
class MicrobatchSums:
    """`reductions`: the values that late sums add up over microbatches, and how."""

    reductions: Mapping[Value, str]
    microbatches: int
    totals: dict[Value, Value] = field(default_factory=dict)
    """Of the microbatches so far."""

    @staticmethod
    def of(late: Sequence[Node], microbatches: int) -> MicrobatchSums:
        """For the nodes that join microbatches when all have run."""
        sums = {n.operands[0]: n.call.args[2] for n in late if n.call is not None and n.name == ALL_REDUCE}
        return MicrobatchSums(sums, microbatches)

    def add(self, node: Node, microbatch: int, parts: Mapping[Parcel, Value]) -> None:
        """Add the results of a node to the sums that they are a part of."""
        for value in node.values:
            how = self.reductions.get(value)
            if how is not None:
                known, part = self.totals.get(value), parts[value, microbatch]
                self.totals[value] = part if known is None else _combined(how, node.op.location, known, part)

    def join(self, node: Node, parts_of: Callable[[Value], list[Value]]) -> Value:
        """What a node that joins microbatches gives: over them, then over what other axes it has."""
        assert node.call is not None
        value, axes, option = node.call.args
        [result] = node.values
        loc = node.op.location
        rest = [axis for axis in axes if axis != MICROBATCH]
        if node.name == ALL_GATHER:
            type_ = grown(without_time(value.type), option, self.microbatches) if rest else result.type
            [made] = build(Call("aten.cat.default", (parts_of(value), option)), [type_], loc)
        else:
            known = self.totals.get(value)
            total = reduce(partial(_combined, option, loc), parts_of(value)) if known is None else known
            type_ = without_time(value.type) if rest else result.type
            [made] = build(Call("aten.alias.default", (total,)), [type_], loc)
        if rest:
            [made] = build(Call(node.name, (made, rest, option)), [result.type], loc)
        return made


def _combined(how: str, loc: Location, a: Value, b: Value) -> Value:
    """Two parts of a sum, or of what else is reduced."""
    [made] = build(Call(_COMBINED[how], (a, b)), [a.type], loc)
    return made
