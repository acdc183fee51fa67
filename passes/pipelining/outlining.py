"""Building `main` of calls: the work of each segment becomes a function, what is done once a step stays."""

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
from .attributes import SPREAD, mark_meeting, mark_segment
from .time_axis import TimeAxis, grown, without_time

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
"""What the function of a segment is called, before the number of its stage if it has one."""


@dataclass
class Segment:
    """One kind of a stage's work, or of every coordinate's: its own operations, and the light ones beside them."""

    kind: Kind
    stage: int
    nodes: list[Node]
    meeting: list[Node] = field(default_factory=list)
    """What all coordinates do together when they have done it; it stays in main."""


@dataclass
class Outliner:
    """Rewrites main; see the module's docstring. `segments` are in an order that respects dataflow."""

    module: Module
    time: TimeAxis
    segments: Sequence[Segment]
    values: dict[Value, Value] = field(default_factory=dict)
    """What each value of the old main is in the new one."""
    light: dict[tuple[int, Value], Value] = field(default_factory=dict)
    """What light work gave that a segment of a stage did, for later segments of that stage."""
    shared: int = 0

    def run(self) -> None:
        """Replace main."""
        graph = self.time.graph
        old = graph.function
        records = argument_records(old)
        new = build_function(self.module, "main", [a.type for a in entry(old).arguments], records=records)
        new.move_before(old)
        self.values.update(zip(entry(old).arguments, entry(new).arguments, strict=True))
        plans = [self._plan(segment) for segment in self.segments]
        wanted = self._wanted(plans)
        with context(), mlir.InsertionPoint(entry(new)):
            self._once()
            for segment, (nodes, takes) in zip(self.segments, plans, strict=True):
                self._segment(segment, nodes, takes, wanted)
            for node in self.time.late:
                self._late(node)
            self._after()
            results = [self._returned(v) for v in terminator(old).operands]
        finish_function(new, results, result_records(old))
        old.erase()

    def _plan(self, segment: Segment) -> tuple[list[Node], list[Value]]:
        """The operations of a segment with the light ones it has to do, in order, and the values that it takes."""
        time, graph = self.time, self.time.graph
        own = set(segment.nodes)
        waiting = [v for node in (*segment.nodes, *segment.meeting) for v in node.operands]
        seen: set[Value] = set()
        while waiting:
            value = waiting.pop()
            node = graph.maker.get(value)
            if value in seen or node is None or node in own or (segment.stage, value) in self.light:
                continue
            seen.add(value)
            if time.is_light(node):
                own.add(node)
                waiting += node.operands
        own.difference_update(segment.meeting)
        for node in own - set(segment.nodes):
            self.light.update({(segment.stage, v): v for v in node.values})
        nodes = [node for node in graph.nodes if node in own]
        made = {v for node in nodes for v in node.values}
        takes = list(dict.fromkeys(v for node in nodes for v in node.operands if v not in made))
        return nodes, takes

    def _wanted(self, plans: Sequence[tuple[list[Node], list[Value]]]) -> set[Value | tuple[int, Value]]:
        """What segments have to give: what another takes, what is summed over time, what main returns."""
        time = self.time
        wanted: set[Value | tuple[int, Value]] = set()
        for segment, (_, takes) in zip(self.segments, plans, strict=True):
            wanted.update((segment.stage, v) if (segment.stage, v) in self.light else v for v in takes)
        for segment in self.segments:
            taken = (v for node in segment.meeting for v in node.operands)
            wanted.update((segment.stage, v) if (segment.stage, v) in self.light else v for v in taken)
        wanted.update(v for node in time.late for v in self._addends(node.operands[0]))
        wanted.update(v for node in time.after for v in node.operands)
        wanted.update(terminator(time.graph.function).operands)
        return wanted

    def _once(self) -> None:
        """What is done before the microbatches; early reductions take what a function gives for each microbatch."""
        once = set(self.time.once)
        for node in self.time.graph.nodes:
            if node in self.time.early:
                self.values.update({v: self._shared(v) for v in dict.fromkeys(node.operands)})
            if node in once:
                copy_node(node, self.values)

    def _shared(self, value: Value) -> Value:
        """A light value, by a function of its own."""
        graph = self.time.graph
        cone = graph.cone([value])
        nodes = [n for n in graph.nodes if n in cone and n in self.time.varying]
        made = {v for node in nodes for v in node.values}
        takes = list(dict.fromkeys(v for node in nodes for v in node.operands if v not in made))
        name, self.shared = f"shared_{self.shared}", self.shared + 1
        self._function(name, nodes, takes, [value])
        [result] = build_call(name, [self.values[v] for v in takes], [value.type], nodes[-1].op.location)
        return result

    def _segment(
        self,
        segment: Segment,
        nodes: Sequence[Node],
        takes: Sequence[Value],
        wanted: Collection[Value | tuple[int, Value]],
    ) -> None:
        stage = segment.stage
        made = [v for node in nodes for v in node.values]
        gives = [v for v in made if ((stage, v) if (stage, v) in self.light else v) in wanted]
        name = NAMES[segment.kind] if stage == SPREAD else f"{NAMES[segment.kind]}_{stage}"
        self._function(name, nodes, takes, gives)
        operands = [self._at(v, stage) for v in takes]
        results = build_call(name, operands, [v.type for v in gives], self._place(segment))
        if results:
            mark_segment(results[0].owner, segment.kind, stage)
        for value, result in zip(gives, results, strict=True):
            if (stage, value) in self.light:
                self.light[stage, value] = result
            else:
                self.values[value] = result
        for node in segment.meeting:
            self._meet(node, segment.kind)

    def _meet(self, node: Node, kind: Kind) -> None:
        """What is done by all coordinates together, in main."""
        assert node.call is not None
        operands = [self._at(v, SPREAD) for v in node.operands]
        made = build(node.call.replace_values(operands), [v.type for v in node.values], node.op.location)
        mark_meeting(made[0].owner, kind)
        self.values.update(zip(node.values, made, strict=True))

    def _at(self, value: Value, stage: int) -> Value:
        """A value as a stage has it."""
        return self.light[stage, value] if (stage, value) in self.light else self.values[value]

    def _function(self, name: str, nodes: Sequence[Node], takes: Sequence[Value], gives: Sequence[Value]) -> None:
        made = build_function(self.module, name, [v.type for v in takes])
        values = dict(zip(takes, entry(made).arguments, strict=True))
        with context(), mlir.InsertionPoint(entry(made)):
            for node in nodes:
                copy_node(node, values)
        finish_function(made, [values[v] for v in gives])

    def _place(self, segment: Segment) -> Location:
        backward = segment.kind not in (Kind.F, Kind.E, Kind.S)
        path = common_path([node.origin.module_path for node in segment.nodes])
        return to_location(Origin(path, "", 0, backward))

    def _addends(self, value: Value) -> list[Value]:
        """What has to be summed over time for a late sum: the value, or what it is added up of."""
        node = self.time.graph.maker.get(value)
        if node is None or node not in self.time.after:
            return [value]
        return [each for operand in node.operands for each in self._addends(operand)]

    def _late(self, node: Node) -> None:
        """What joins microbatches, then what commutes with it, then the same over the other axes."""
        assert node.call is not None
        value, axes, option = node.call.args
        loc = node.op.location
        if node.name == ALL_GATHER:
            type_ = grown(without_time(value.type), option, microbatches(self.module.mesh))
            [made] = build(Call(ALL_GATHER, (self._of_time(value), [MICROBATCH], option)), [type_], loc)
        else:
            made = self._summed(value, option, loc)
        rest = [axis for axis in axes if axis != MICROBATCH]
        if rest:
            [made] = build(Call(node.name, (made, rest, option)), [node.values[0].type], loc)
        self.values[node.values[0]] = made

    def _summed(self, value: Value, reduce: str, loc: Location) -> Value:
        maker = self.time.graph.maker.get(value)
        type_ = without_time(value.type)
        if maker is not None and maker in self.time.after:
            assert maker.call is not None
            operands = [self._summed(v, reduce, loc) for v in maker.operands]
            [made] = build(maker.call.replace_values(operands), [type_], maker.op.location)
            return made
        known = self._of_time(value)
        [made] = build(Call(ALL_REDUCE, (known, [MICROBATCH], reduce)), [type_], loc)
        return made

    def _of_time(self, value: Value) -> Value:
        """A value that microbatches differ in, in main: a segment's result, or light work by a function of its own."""
        if value not in self.values:
            self.values[value] = self._shared(value)
        return self.values[value]

    def _after(self) -> None:
        for node in self.time.graph.nodes:
            if (
                node in self.time.after
                and all(v in self.values for v in node.operands)
                and node not in self.time.varying
            ):
                copy_node(node, self.values)

    def _returned(self, value: Value) -> Value:
        return self._of_time(value)


def common_path(paths: Sequence[str]) -> str:
    """The module that all paths lie in: their longest common beginning of whole names; "" for the whole model.

    >>> common_path(["model.layers.0.mlp", "model.layers.1"])
    'model.layers'
    """
    parts = [path.split(".") for path in paths if path]
    if not parts:
        return ""
    found = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        found.append(names[0])
    return ".".join(found)
