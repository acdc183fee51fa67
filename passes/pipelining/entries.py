"""The entry function of the ranks at one coordinate on the axis of the stages: a straight line through a whole step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, partial, reduce

import torch

from ...ir.bindings import Location, Operation, Type, Value, mlir
from ...ir.collectives import ALL_GATHER, ALL_REDUCE, RECEIVE, SEND
from ...ir.dialects.context import context
from ...ir.locations import Origin, to_location
from ...ir.module import Module, build_call, build_function, entry, finish_function
from ...ir.operations import Call, build
from ...ir.pipelined_module import MICROBATCH, entry_name, microbatches, set_microbatch
from ...ir.types import from_mlir, to_mlir
from ...schedules.schedule import Task
from ..graph import Node, build_like, copy_node, made_at
from .messages import Messages, Parcel
from .pairs import Pairs, taken
from .spread import meets
from .step import Step
from .time_axis import cut_dim, grown, whole, without_time

_NOWHERE = Origin()


@dataclass
class EntryBuilder:
    """Builds the entry of one coordinate; see the module's docstring."""

    module: Module
    step: Step
    messages: Messages
    axis: str
    at: int
    pairs: Pairs
    dtype: torch.dtype | None = None
    """What floating values of microbatches are cast to where they cross; None: nothing is."""
    values: dict[Value, Value] = field(default_factory=dict)
    """What is there once a step."""
    parts: dict[Parcel, Value] = field(default_factory=dict)
    """What is there for each microbatch."""
    totals: dict[Value, Value] = field(default_factory=dict)
    """Sums over the microbatches so far."""
    received: dict[int, int] = field(default_factory=dict)
    """How many of the messages of each other coordinate were received."""
    meeting: list[tuple[Node, int]] = field(default_factory=list)
    """What all coordinates are to do together next, each with its microbatch."""
    _places: dict[Value, Location] = field(default_factory=dict)

    def build(self) -> Operation:
        """The function, in the module."""
        taken = self.step.taken(self.at)
        arguments = [(n, v, record) for n, (v, record) in enumerate(self.step.graph.arguments)]
        mine = [(n, v, record) for n, v, record in arguments if self._is_given(v, taken)]
        types = [whole(v.type, self._count) for _, v, _ in mine]
        records = [{**record, "order": n} for n, _, record in mine]
        function = build_function(self.module, entry_name(self.at), types, records=records)
        self.values.update({v: a for (_, v, _), a in zip(mine, entry(function).arguments, strict=True)})
        with context(), mlir.InsertionPoint(entry(function)):
            self._share_parameters()
            self._before()
            self._tasks()
            self._after()
            results, records = self._results()
        finish_function(function, results, records)
        return function

    def _is_given(self, value: Value, taken: set[Value]) -> bool:
        return value in taken and self.step.homes.get(value, self.at) == self.at

    @property
    def _count(self) -> int:
        return microbatches(self.module.mesh)

    def _share_parameters(self) -> None:
        """Send what is owned here to those that use it too, and receive what others own."""
        for value, _ in self.step.graph.arguments:
            home = self.step.homes.get(value)
            others = [] if home is None else [to for to in self.step.takers(value) if to != home]
            if home == self.at:
                for to in others:
                    self._send(self.values[value], to, _loc())
            elif self.at in others and home is not None:
                self.values[value] = self._receive(value.type, home, _loc())

    def _before(self) -> None:
        """What inputs and parameters decide; what all microbatches share is added up over them."""
        nodes = self.step.before(self.at)
        for node in self.step.graph.nodes:
            if node not in nodes:
                continue
            if node in self.step.time.varying:
                for microbatch in range(self._count):
                    self._call(node, microbatch)
            elif node in self.step.time.early:
                self._join(node)
            else:
                copy_node(node, self.values)

    def _join(self, node: Node) -> None:
        """What joins microbatches: over them, then over what other axes it has."""
        assert node.call is not None
        value, axes, option = node.call.args
        [result] = node.values
        loc = node.op.location
        rest = [axis for axis in axes if axis != MICROBATCH]
        parts = [self._part(value, microbatch) for microbatch in range(self._count)] if value not in self.totals else []
        if node.name == ALL_GATHER:
            type_ = grown(without_time(value.type), option, self._count) if rest else result.type
            [made] = build(Call("aten.cat.default", (parts, option)), [type_], loc)
        else:
            total = self.totals[value] if value in self.totals else reduce(partial(_combined, option, loc), parts)
            [made] = build(
                Call("aten.alias.default", (total,)), [without_time(value.type) if rest else result.type], loc
            )
        if rest:
            [made] = build(Call(node.name, (made, rest, option)), [result.type], loc)
        self.values[result] = made

    def _tasks(self) -> None:
        tasks = iter(self.messages.schedule.order[self.at])
        for task in tasks:
            if task in self.messages.schedule.overlapped:
                self._pair(task, next(tasks))
            elif task.kind.is_shared:
                self._share(task)
            else:
                self._task(task)
                self._meet()
        self._meet()

    def _task(self, task: Task) -> None:
        for node in self.messages.calls(task):
            self._call(node, task.microbatch)
            self._give(node, task.microbatch)

    def _share(self, task: Task) -> None:
        """A task that every coordinate has a part of; collectives of what it gives begin, the rest comes later."""
        self._meet()
        self._task(task)
        waiting = [(node, task.microbatch) for node in self.step.meetings.get(task.kind, ())]
        made = {v for node, _ in waiting for v in node.values}
        for node, microbatch in waiting:
            if meets(node, self.axis) and not any(v in made for v in node.operands):
                self._join_in(node, microbatch)
            else:
                self.meeting.append((node, microbatch))

    def _meet(self) -> None:
        """Do what all coordinates do together; they come to it in the same order."""
        waiting, self.meeting = self.meeting, []
        for node, microbatch in waiting:
            self._join_in(node, microbatch)

    def _join_in(self, node: Node, microbatch: int) -> None:
        """One operation of a meeting."""
        assert node.call is not None
        operands = [self._part(v, microbatch) for v in node.operands]
        made = build(node.call.replace_values(operands), [v.type for v in node.values], node.op.location)
        self.parts.update({(v, microbatch): new for v, new in zip(node.values, made, strict=True)})
        self._add_to_totals(node, microbatch)

    def _pair(self, forward: Task, backward: Task) -> None:
        """Two tasks in one call, where that can hide communication; else one after the other."""
        first, second = self.messages.calls(forward), self.messages.calls(backward)
        name = self.pairs.function(first[0], second) if first and second else None
        if name is None:
            self._task(forward)
            self._task(backward)
            return
        turns = [(node, task.microbatch) for task, nodes in ((forward, first), (backward, second)) for node in nodes]
        operands = [self._part(v, forward.microbatch) for v in taken(first)]
        operands += [self._part(v, backward.microbatch) for v in taken(second)]
        types = [v.type for node, _ in turns for v in node.values]
        made = build_call(name, operands, types, first[0].op.location)
        set_microbatch(made[0].owner, (forward.microbatch, backward.microbatch))
        results = iter(made)
        for node, microbatch in turns:
            self.parts.update({(v, microbatch): next(results) for v in node.values})
        for node, microbatch in turns:
            self._give(node, microbatch)

    def _give(self, node: Node, microbatch: int) -> None:
        """Send what others need of a call's results, and add up what is summed over time."""
        for to, (value, of) in self.messages.sent_after(node, microbatch):
            self._send(self._packed(self.parts[value, of]), to, self._place(value))
        self._add_to_totals(node, microbatch)

    def _add_to_totals(self, node: Node, microbatch: int) -> None:
        for value in node.values:
            how = self._summed.get(value)
            if how is not None:
                known, part = self.totals.get(value), self.parts[value, microbatch]
                self.totals[value] = part if known is None else _combined(how, node.op.location, known, part)

    @cached_property
    def _summed(self) -> dict[Value, str]:
        """The values that late sums add up, and how."""
        late = self.step.time.late
        return {n.operands[0]: n.call.args[2] for n in late if n.call is not None and n.name == ALL_REDUCE}

    def _call(self, node: Node, microbatch: int) -> None:
        """One task."""
        operands = [self._part(v, microbatch) for v in node.operands]
        made = build_like(node, operands, [v.type for v in node.values], node.op.location)
        if made:
            set_microbatch(made[0].owner, microbatch)
        self.parts.update({(v, microbatch): new for v, new in zip(node.values, made, strict=True)})

    def _part(self, value: Value, microbatch: int) -> Value:
        """A value as a microbatch needs it: what is once a step, a slice of an input, a result, a message."""
        if (value, microbatch) in self.parts:
            return self.parts[value, microbatch]
        if value in self.step.everywhere:
            self._meet()
            return self.parts[value, microbatch]
        if value in self.values:
            made = self.values[value]
            if cut_dim(value.type) is None:
                return made
            self.parts[value, microbatch] = _slice(made, value.type, microbatch)
        else:
            self._receive_until((value, microbatch))
        return self.parts[value, microbatch]

    def _receive_until(self, parcel: Parcel) -> None:
        """Receive what a coordinate sent, in its order, up to a parcel."""
        source = self.step.makers[parcel[0]]
        queue = self.messages.queues[source, self.at]
        while parcel not in self.parts:
            number = self.received.get(source, 0)
            self.received[source] = number + 1
            value, microbatch = queue[number]
            made = self._receive(self._packed_type(value.type), source, self._place(value))
            self.parts[value, microbatch] = self._unpacked(made, value)

    def _after(self) -> None:
        """Sums over time go where they are wanted; what is made of them is made."""
        for node in self.step.time.late:
            self._finish_late(node)
        for node in self.step.graph.nodes:
            if node in self.step.after(self.at):
                copy_node(node, self.values)

    def _finish_late(self, node: Node) -> None:
        maker, takers = self.step.sum_maker(node), self.step.sum_takers(node)
        [value] = node.values
        if maker == self.at:
            self._join(node)
            for to in takers:
                if to != self.at:
                    self._send(self.values[value], to, node.op.location)
        elif maker is None:
            if self.at in takers:
                self._join(node)
        elif self.at in takers:
            self.values[value] = self._receive(value.type, maker, node.op.location)

    def _results(self) -> tuple[list[Value], list[dict[str, object]]]:
        """What this entry gives: what is its own, and all outputs."""
        values, records = [], []
        for order, (value, record) in enumerate(self.step.graph.results):
            maker = self.step.maker(value, record)
            is_output = record.get("kind") == "output"
            if not is_output and maker not in (self.at, None):
                continue
            if maker in (self.at, None):
                made = self._joined(value)
                for to in range(self.messages.schedule.ranks) if is_output and maker is not None else ():
                    if to != self.at:
                        self._send(made, to, self._place(value))
            else:
                assert maker is not None
                made = self._receive(whole(value.type, self._count), maker, self._place(value))
            values.append(made)
            records.append({**record, "order": order})
        return values, records

    def _joined(self, value: Value) -> Value:
        """A result of main; of one that microbatches differ in, all of them behind each other."""
        if value in self.values:
            return self.values[value]
        parts = [self._part(value, microbatch) for microbatch in range(self._count)]
        dim = cut_dim(value.type)
        return build(Call("aten.cat.default", (parts, dim)), [whole(value.type, self._count)], _loc())[0]

    def _packed(self, value: Value) -> Value:
        """A value in the dtype in which it crosses."""
        type_ = self._packed_type(value.type)
        if type_ == value.type:
            return value
        return build(Call("aten._to_copy.default", (value,), {"dtype": from_mlir(type_).dtype}), [type_], _loc())[0]

    def _packed_type(self, type_: Type) -> Type:
        tensor = from_mlir(type_)
        if self.dtype is None or not tensor.dtype.is_floating_point or tensor.dtype.itemsize <= self.dtype.itemsize:
            return type_
        return to_mlir(replace(tensor, dtype=self.dtype))

    def _unpacked(self, value: Value, like: Value) -> Value:
        if value.type == like.type:
            return value
        dtype = from_mlir(like.type).dtype
        return build(Call("aten._to_copy.default", (value,), {"dtype": dtype}), [like.type], _loc())[0]

    def _send(self, value: Value, to: int, loc: Location) -> None:
        build(Call(SEND, (value, self.axis, to)), [], loc)

    def _receive(self, type_: Type, source: int, loc: Location) -> Value:
        tensor = from_mlir(type_)
        call = Call(RECEIVE, (self.axis, source, list(tensor.shape), tensor.dtype))
        [made] = build(call, [type_], loc)
        return made

    def _place(self, value: Value) -> Location:
        """Where in the model a value of main is made: in the function that gives it, where a call does."""
        if value not in self._places:
            self._places[value] = made_at(self.module, value) or _loc()
        return self._places[value]


def _loc() -> Location:
    return to_location(_NOWHERE)


def _combined(how: str, loc: Location, a: Value, b: Value) -> Value:
    """Two addends of a sum, or of what else is reduced."""
    name = {"sum": "aten.add.Tensor", "max": "aten.maximum.default", "min": "aten.minimum.default"}[how]
    [made] = build(Call(name, (a, b)), [a.type], loc)
    return made


def _slice(value: Value, type_: Type, microbatch: int) -> Value:
    """The part of an input that a microbatch takes."""
    dim = cut_dim(type_)
    assert dim is not None
    size = from_mlir(type_).shape[dim]
    call = Call("aten.slice.Tensor", (value, dim, microbatch * size, (microbatch + 1) * size))
    [made] = build(call, [type_], _loc())
    return made
