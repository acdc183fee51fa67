"""Outline the work of each segment into a function; main keeps the calls and the work done once a step."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from ...ir.bindings import Location, Value, mlir
from ...ir.collectives import ALL_GATHER, ALL_REDUCE
from ...ir.dialects.context import context
from ...ir.locations import Origin, to_location
from ...ir.module import (
    Module,
    argument_records,
    build_call,
    build_function,
    entry,
    finish_function,
    result_records,
    terminator,
)
from ...ir.operations import Call, build
from ...ir.pipelined_module import MICROBATCH, microbatches
from ...schedules.schedule import Kind
from ..graph import Node, copy_node
from .attributes import SHARED, mark_barrier, mark_segment
from .microbatch_analysis import MicrobatchAnalysis, concatenated, without_microbatch_axis

NAMES = {
    Kind.F: "forward",
    Kind.B: "input_gradient",
    Kind.W: "weight_gradient",
    Kind.BW: "backward",
    Kind.S: "output",
    Kind.T: "output_gradient",
    Kind.E: "embedding",
    Kind.G: "embedding_gradient",
}
"""The names of segments' functions, without the number of the stage."""


@dataclass
class Segment:
    """One kind of a stage's work, or of shared work; light work that it needs is added later."""

    kind: Kind
    stage: int
    nodes: list[Node]
    barrier: list[Node] = field(default_factory=list)
    """The operations of the barrier after a shared segment; they stay in main."""


@dataclass
class Outliner:
    """Rewrites main; see the module's docstring. `segments` are in an order that respects dataflow."""

    module: Module
    analysis: MicrobatchAnalysis
    segments: Sequence[Segment]
    values: dict[Value, Value] = field(default_factory=dict)
    """From values of the old main to those of the new one."""
    light: dict[tuple[int, Value], Value] = field(default_factory=dict)
    """By (stage, old value): results of light work in a segment, for later segments of that stage."""
    light_functions: int = 0

    def run(self) -> None:
        """Replace main."""
        graph = self.analysis.graph
        old = graph.function
        records = argument_records(old)
        new = build_function(self.module, "main", [a.type for a in entry(old).arguments], records=records)
        new.move_before(old)
        self.values.update(zip(entry(old).arguments, entry(new).arguments, strict=True))
        plans = [self._plan(segment) for segment in self.segments]
        needed = self._needed(plans)
        with context(), mlir.InsertionPoint(entry(new)):
            self._once_per_step()
            for segment, (nodes, inputs) in zip(self.segments, plans, strict=True):
                self._midway()
                self._segment(segment, nodes, inputs, needed)
            self._midway()
            for node in self.analysis.late:
                self._late(node)
            self._after()
            results = [self._returned(v) for v in terminator(old).operands]
        finish_function(new, results, result_records(old))
        old.erase()

    def _plan(self, segment: Segment) -> tuple[list[Node], list[Value]]:
        """The operations of a segment with the light work that it needs, in order, and its operands."""
        analysis, graph = self.analysis, self.analysis.graph
        nodes_to_do = set(segment.nodes)
        waiting = [v for node in (*segment.nodes, *segment.barrier) for v in node.operands]
        seen: set[Value] = set()
        while waiting:
            value = waiting.pop()
            node = graph.maker.get(value)
            if value in seen or node is None or node in nodes_to_do or (segment.stage, value) in self.light:
                continue
            seen.add(value)
            if analysis.is_light(node):
                nodes_to_do.add(node)
                waiting += node.operands
        nodes_to_do.difference_update(segment.barrier)
        for node in nodes_to_do - set(segment.nodes) - analysis.gathers:
            self.light.update({(segment.stage, v): v for v in node.values})
        nodes = [node for node in graph.nodes if node in nodes_to_do]
        values = {v for node in nodes for v in node.values}
        inputs = list(dict.fromkeys(v for node in nodes for v in node.operands if v not in values))
        return nodes, inputs

    def _needed(self, plans: Sequence[tuple[list[Node], list[Value]]]) -> set[Value | tuple[int, Value]]:
        """The values that segments must return: for other segments, for sums over microbatches, and main's results."""
        analysis = self.analysis
        needed: set[Value | tuple[int, Value]] = set()
        for segment, (_, inputs) in zip(self.segments, plans, strict=True):
            needed.update((segment.stage, v) if (segment.stage, v) in self.light else v for v in inputs)
        for segment in self.segments:
            operands = (v for node in segment.barrier for v in node.operands)
            needed.update((segment.stage, v) if (segment.stage, v) in self.light else v for v in operands)
        needed.update(v for node in analysis.late for v in self._sum_terms(node.operands[0]))
        needed.update(v for node in (*analysis.midway, *analysis.after) for v in node.operands)
        needed.update(terminator(analysis.graph.function).operands)
        return needed

    def _once_per_step(self) -> None:
        """Copy the work done before the microbatches; operands of early reductions come from light functions."""
        once = set(self.analysis.once)
        for node in self.analysis.graph.nodes:
            if node in self.analysis.early:
                self.values.update({v: self._light_function(v) for v in dict.fromkeys(node.operands)})
            if node in once:
                copy_node(node, self.values)

    def _midway(self) -> None:
        """Copy the sums between forwards and backwards whose operands there are, and the work behind them."""
        for node in self.analysis.midway:
            if node.values[0] not in self.values and all(v in self.values for v in node.operands):
                copy_node(node, self.values)

    def _light_function(self, value: Value) -> Value:
        """A light value, computed by a function of its own."""
        graph = self.analysis.graph
        cone = graph.cone([value])
        nodes = [n for n in graph.nodes if n in cone and n in self.analysis.varying]
        values = {v for node in nodes for v in node.values}
        inputs = list(dict.fromkeys(v for node in nodes for v in node.operands if v not in values))
        name, self.light_functions = f"shared_{self.light_functions}", self.light_functions + 1
        self._function(name, nodes, inputs, [value])
        [result] = build_call(name, [self.values[v] for v in inputs], [value.type], nodes[-1].op.location)
        return result

    def _segment(
        self,
        segment: Segment,
        nodes: Sequence[Node],
        inputs: Sequence[Value],
        needed: Collection[Value | tuple[int, Value]],
    ) -> None:
        stage = segment.stage
        values = [v for node in nodes for v in node.values]
        outputs = [v for v in values if ((stage, v) if (stage, v) in self.light else v) in needed]
        name = NAMES[segment.kind] if stage == SHARED else f"{NAMES[segment.kind]}_{stage}"
        self._function(name, nodes, inputs, outputs)
        operands = [self._value(v, stage) for v in inputs]
        results = build_call(name, operands, [v.type for v in outputs], self._location(segment))
        if results:
            mark_segment(results[0].owner, segment.kind, stage)
        for value, result in zip(outputs, results, strict=True):
            if (stage, value) in self.light:
                self.light[stage, value] = result
            else:
                self.values[value] = result
        for node in segment.barrier:
            self._barrier_op(node, segment.kind)

    def _barrier_op(self, node: Node, kind: Kind) -> None:
        """Copy an operation of a barrier into main."""
        assert node.call is not None
        operands = [self._value(v, SHARED) for v in node.operands]
        results = build(node.call.replace_values(operands), [v.type for v in node.values], node.op.location)
        mark_barrier(results[0].owner, kind)
        self.values.update(zip(node.values, results, strict=True))

    def _value(self, value: Value, stage: int) -> Value:
        """A value in the new main, as a stage has it."""
        return self.light[stage, value] if (stage, value) in self.light else self.values[value]

    def _function(self, name: str, nodes: Sequence[Node], inputs: Sequence[Value], outputs: Sequence[Value]) -> None:
        function = build_function(self.module, name, [v.type for v in inputs])
        values = dict(zip(inputs, entry(function).arguments, strict=True))
        with context(), mlir.InsertionPoint(entry(function)):
            for node in nodes:
                copy_node(node, values)
        finish_function(function, [values[v] for v in outputs])

    def _location(self, segment: Segment) -> Location:
        backward = segment.kind not in (Kind.F, Kind.E, Kind.S)
        path = common_path([node.origin.module_path for node in segment.nodes])
        return to_location(Origin(path, "", 0, backward))

    def _sum_terms(self, value: Value) -> list[Value]:
        """The values to sum over microbatches for a late sum: the value, or the terms that are added after it."""
        node = self.analysis.graph.maker.get(value)
        if node is None or node not in self.analysis.after:
            return [value]
        return [term for operand in node.operands for term in self._sum_terms(operand)]

    def _late(self, node: Node) -> None:
        """Copy a late collective: over microbatches first, then what commutes with it, then over the other axes."""
        assert node.call is not None
        value, axes, option = node.call.args
        loc = node.op.location
        if node.name == ALL_GATHER:
            type_ = concatenated(without_microbatch_axis(value.type), option, microbatches(self.module.mesh))
            [joined] = build(Call(ALL_GATHER, (self._microbatched(value), [MICROBATCH], option)), [type_], loc)
        else:
            joined = self._summed(value, option, loc)
        other_axes = [axis for axis in axes if axis != MICROBATCH]
        if other_axes:
            [joined] = build(Call(node.name, (joined, other_axes, option)), [node.values[0].type], loc)
        self.values[node.values[0]] = joined

    def _summed(self, value: Value, reduce: str, loc: Location) -> Value:
        maker = self.analysis.graph.maker.get(value)
        type_ = without_microbatch_axis(value.type)
        if maker is not None and maker in self.analysis.after:
            assert maker.call is not None
            operands = [self._summed(v, reduce, loc) for v in maker.operands]
            [total] = build(maker.call.replace_values(operands), [type_], maker.op.location)
            return total
        part = self._microbatched(value)
        [total] = build(Call(ALL_REDUCE, (part, [MICROBATCH], reduce)), [type_], loc)
        return total

    def _microbatched(self, value: Value) -> Value:
        """A value of each microbatch, in main: a segment's result, or that of a light function."""
        if value not in self.values:
            self.values[value] = self._light_function(value)
        return self.values[value]

    def _after(self) -> None:
        for node in self.analysis.graph.nodes:
            if (
                node in self.analysis.after
                and all(v in self.values for v in node.operands)
                and node not in self.analysis.varying
            ):
                copy_node(node, self.values)

    def _returned(self, value: Value) -> Value:
        return self._microbatched(value)


def common_path(paths: Sequence[str]) -> str:
    """The innermost module that contains all paths; "" for the whole model.

    >>> common_path(["model.layers.0.mlp", "model.layers.1"])
    'model.layers'
    """
    parts = [path.split(".") for path in paths if path]
    if not parts:
        return ""
    common = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    return ".".join(common)
